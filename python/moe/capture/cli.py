"""The command line: python -m moe.capture --model MODEL --text FILE --out FOLDER."""
import argparse
import os
import sys

from .errors import CaptureError, counted, reject
from .folders import require_folder

DESCRIPTION = """Runs a model of transformers on a text, with the next token's cross
entropy and its backward, and writes what its MoE layers got and gave as golden files.
Then `moe verify FOLDER/*.safetensors` says whether this layer is the model's."""

EPILOG = """Exit code: 0 written, 2 bad input. A training loop of your own, or a model of
Megatron-Core: see docs/capture.md."""


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise CaptureError(message)


def make_parser():
    parser = _Parser(prog="python -m moe.capture", description=DESCRIPTION, epilog=EPILOG,
                     allow_abbrev=False)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR_OR_NAME",
        help="a folder that save_pretrained wrote, or a name on the hub")
    add("--text", metavar="FILE", help="UTF-8, by the model's tokenizer; - is stdin")
    add("--random-tokens", type=int, metavar="N",
        help="N seeded random ids instead, for a model without a tokenizer")
    add("--tokens", type=int, default=512, metavar="N",
        help="how much of the text the model is given (default: 512)")
    add("--layers", metavar="1,3-5", help="numbers, ranges, or names of modules "
        "(default: all MoE layers)")
    add("--out", required=True, metavar="FOLDER", help="made where it is missing; files "
        "of the same name are replaced")
    add("--dtype", default="float64", metavar="D",
        help="in which the values to judge by are computed: float64 (default), float32, "
             "bfloat16")
    add("--model-dtype", default="auto", metavar="D",
        help="in which the model is loaded: auto (default, as saved), float32, bfloat16, "
             "float16, float64")
    add("--device", default="cpu", help="on which the model runs (default: cpu)")
    add("--max-bytes", default="64M", metavar="B",
        help="of a file, with K, M or G; fewer tokens are kept (default: 64M)")
    add("--max-tokens", type=int, metavar="N", help="of a file (default: all that fit)")
    add("--exact", action="store_true", help="keep values that bf16 does not hold; "
        "without, they are rounded to it, so that every tier starts from the same")
    add("--forward-only", action="store_true", help="no backward, no gradients")
    add("--no-source-errors", action="store_true",
        help="do not ask what fp32 and bf16 cost the model's own code")
    return parser


def read_bytes(text):
    """"64M": 67108864."""
    shift = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper(), 0)
    digits = text[:-1] if shift else text
    if not digits.isdigit() or int(digits) == 0:
        reject("--max-bytes", text, "must be a positive number, or one with K, M or G")
    return int(digits) << shift


def read_layers(text):
    """"1,3-5": [1, 3, 4, 5]; what is no number is a module's name. None for None."""
    if text is None:
        return None
    layers = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if dash and first.isdigit() and last.isdigit():
            if int(first) > int(last):
                reject("--layers", text, f"{part} must not go down")
            layers += range(int(first), int(last) + 1)
        elif first.isdigit() and not dash:
            layers.append(int(first))
        elif part.strip():
            layers.append(part.strip())
        else:
            reject("--layers", text, "must be numbers, ranges or names, with commas "
                   "between them")
    return layers


def check(flags):
    """What can be told before a model is loaded."""
    if (flags.text is None) == (flags.random_tokens is None):
        raise CaptureError("--text, --random-tokens: give one of them")
    for name in ("random_tokens", "tokens", "max_tokens"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            reject("--" + name.replace("_", "-"), value, "must be at least 1")
    names = {"--dtype": ("float64", "float32", "bfloat16"),
             "--model-dtype": ("auto", "float64", "float32", "bfloat16", "float16")}
    for flag, allowed in names.items():
        value = getattr(flags, flag[2:].replace("-", "_"))
        if value not in allowed:
            reject(flag, value, "allowed are " + ", ".join(allowed))
    if flags.text not in (None, "-") and not os.path.isfile(flags.text):
        reject("--text", flags.text, "no such file")
    require_folder("--out", flags.out)
    flags.max_bytes = read_bytes(flags.max_bytes)
    flags.layers = read_layers(flags.layers)


def say(line):
    print("moe.capture: " + line, file=sys.stderr, flush=True)


def one_line(error, limit=300):
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[:limit] + " ..."


def import_libraries():
    try:
        import torch
        import transformers
    except ImportError as error:
        raise CaptureError(f"torch, transformers = absent: must be installed "
                           f"({one_line(error)})") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers


def load_model(flags, torch, transformers):
    kinds = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModel")
    dtype = flags.model_dtype
    dtype = dtype if dtype == "auto" else getattr(torch, dtype)
    refused = None
    for kind in kinds:
        try:
            model = getattr(transformers, kind).from_pretrained(flags.model, dtype=dtype)
            return model.to(flags.device)
        except ValueError as error:  # another kind of model
            refused = refused or error
        except Exception as error:  # hub, disk, pickle, …: all are of the model's
            refused = error
            break
    reject("--model", flags.model, one_line(refused))


def read_ids(flags, model, torch, transformers):
    """(1, tokens)"""
    if flags.random_tokens is not None:
        generator = torch.Generator().manual_seed(0)
        size = model.get_input_embeddings().weight.shape[0]
        return torch.randint(size, (1, flags.random_tokens), generator=generator)
    try:
        text = sys.stdin.read() if flags.text == "-" else open(
            flags.text, encoding="utf-8").read()
    except (OSError, UnicodeDecodeError) as error:
        reject("--text", flags.text, one_line(error))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(flags.model)
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
    except Exception as error:
        reject("--model", flags.model, "its tokenizer cannot be used, --random-tokens N "
               f"goes without: {one_line(error)}")
    if ids.shape[1] == 0:
        reject("--text", flags.text, "holds no token")
    return ids[:, :flags.tokens]


def run(model, ids, backward, torch):
    """One forward, and the backward of the next token's cross entropy."""
    ids = ids.to(next(model.parameters()).device)
    # Gradients of tokens alone: those of all weights would be as large as the model
    model.requires_grad_(False)
    embeddings = model.get_input_embeddings()
    hook = embeddings.register_forward_hook(
        lambda _, __, output: output.requires_grad_(backward))
    try:
        with torch.set_grad_enabled(backward):
            output = model(input_ids=ids, use_cache=False)
            if not backward:
                return
            logits = getattr(output, "logits", None)
            if logits is not None and logits.shape[:2] == ids.shape and ids.shape[1] > 1:
                loss = torch.nn.functional.cross_entropy(
                    logits[0, :-1].float(), ids[0, 1:])
            else:  # one token, or a model without a head
                value = output[0].float()
                generator = torch.Generator().manual_seed(0)
                direction = torch.randn(value.shape, generator=generator)
                loss = (value * direction.to(value.device)).mean()
            loss.backward()
    finally:
        hook.remove()


def capture_text(flags):
    check(flags)
    say("importing torch and transformers")
    torch, transformers = import_libraries()
    from .session import capture
    say(f"loading {flags.model}")
    model = load_model(flags, torch, transformers).eval()
    session = capture(model, flags.out, flags.layers, flags.dtype, flags.max_bytes,
                      flags.max_tokens, flags.exact, not flags.no_source_errors, say)
    ids = read_ids(flags, model, torch, transformers)
    say(f"running {type(model).__name__} on {counted(ids.shape[1], 'token')}")
    if flags.model_dtype == "float64":
        from .runs import one_expert_after_the_other
        one_expert_after_the_other(model)  # torch's grouped product has no fp64
    with session:
        try:
            run(model, ids, not flags.forward_only, torch)
        except RuntimeError as error:
            reject("--model", flags.model, f"does not run: {one_line(error)}")
    for file in session.files:
        print(f"{file.path}  {file.layer}, {counted(file.tokens, 'token')}, "
              f"{counted(file.size, 'byte')}")
        for note in file.notes:
            print("  " + note)
    print(f"now: moe verify {os.path.join(flags.out, '*.safetensors')}")


def main(arguments):
    """@return the exit code"""
    try:
        capture_text(make_parser().parse_args(arguments))
    except (CaptureError, OSError) as error:
        say(one_line(error, 2000))
        return 2
    except KeyboardInterrupt:
        say("stopped")
        return 130
    return 0
