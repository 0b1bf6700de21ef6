"""moe.Tensor: memory is shared or refused, and never copied behind one's back."""

import gc
import weakref

import numpy
import pytest

import moe


def refused(array, *words):
    """Asserts that the array is refused in one line that has these words."""
    with pytest.raises(moe.InputError) as caught:
        moe.Tensor(array)
    line = str(caught.value)
    assert line.startswith("array = ") and "\n" not in line
    for word in words:
        assert word in line


@pytest.mark.parametrize("dtype, name", [
    ("float64", "fp64"), ("float32", "fp32"), ("int64", "int64"), ("int32", "int32"),
    ("uint8", "uint8"), ("bool", "uint8")])
def test_every_dtype_is_shared_both_ways(dtype, name):
    array = numpy.zeros((3, 5), dtype)
    tensor = moe.Tensor(array)
    assert (tensor.dtype, tensor.shape, tensor.space) == (name, (3, 5), "host")
    array[1, 2] = 1
    assert tensor.numpy()[1, 2] == 1
    tensor.numpy()[2, 4] = 1
    assert array[2, 4] == 1


def test_what_cannot_be_shared_is_refused_by_name():
    array = numpy.zeros((4, 6), numpy.float32)
    refused(array.T, "strides (1, 6)", "ascontiguousarray")
    refused(array[::2], "strides (12, 1)", "ascontiguousarray")
    refused(array[:, 1:], "strides (6, 1)")
    refused(array.astype(numpy.float16), "float16", "float32")
    refused(array.astype(numpy.uint16), "uint16")
    refused(array.astype(">f4"))
    refused(numpy.zeros(3, numpy.complex64), "DLPack code 5")
    refused(numpy.array(["text"]))
    refused([1.0, 2.0], "list", "numpy")
    refused("text", "str")
    refused(None, "None")


def test_a_misaligned_array_is_refused():
    array = numpy.zeros(17, numpy.uint8)[1:].view(numpy.float32)
    refused(array, "multiple of 4")


def test_axes_of_size_one_and_empty_arrays_have_no_wrong_stride():
    wide = numpy.zeros((4, 6), numpy.float32)
    assert moe.Tensor(wide[:1, :]).shape == (1, 6)
    assert moe.Tensor(wide[:0, ::2]).shape == (0, 3)
    number = moe.Tensor(numpy.array(2.5))
    assert (number.shape, number.ndim, len(moe.Tensor(wide))) == ((), 0, 4)
    with pytest.raises(TypeError):
        len(number)


def test_a_read_only_array_stays_read_only():
    array = numpy.arange(6.0)
    array.flags.writeable = False
    tensor = moe.Tensor(array)
    assert tensor.read_only and "read-only" in repr(tensor)
    assert not tensor.numpy().flags.writeable
    assert not numpy.from_dlpack(tensor).flags.writeable
    assert not numpy.asarray(tensor).flags.writeable
    with pytest.raises(moe.InputError, match="read-only"):
        tensor.__dlpack__()  # a reader of before 1.0 knows no flag for it
    copy = tensor.copy()
    copy.numpy()[0] = 9
    assert array[0] == 0


def test_the_array_lives_as_long_as_somebody_looks():
    class Owner(numpy.ndarray):
        pass

    array = numpy.zeros(5).view(Owner)
    gone = weakref.ref(array)
    tensor = moe.Tensor(array)
    del array
    gc.collect()
    assert gone() is not None
    view = tensor.numpy()
    del tensor
    gc.collect()
    view[:] = 3  # the memory is there
    assert gone() is not None
    del view
    gc.collect()
    assert gone() is None


def test_what_a_layer_made_outlives_the_layer(config, hidden):
    layer = moe.MoELayer(config, moe.random_parameters(config))
    output = layer.forward(hidden).output.numpy()
    before = output.copy()
    del layer
    gc.collect()
    for _ in range(3):  # others take memory
        moe.MoELayer(config, moe.random_parameters(config, 2)).forward(hidden)
    numpy.testing.assert_array_equal(output, before)


def test_bf16_reaches_numpy_by_ml_dtypes_or_by_a_copy(config, hidden):
    layer = moe.MoELayer(config, moe.random_parameters(config), "optimized_gpu:bf16")
    bf16 = layer.forward(hidden).output.copy()
    assert bf16.dtype == "bf16"
    try:
        import ml_dtypes
    except ImportError:
        with pytest.raises(moe.InputError, match="ml_dtypes"):
            bf16.numpy()
    else:
        view = bf16.numpy()
        assert view.dtype == ml_dtypes.bfloat16 and view.shape == bf16.shape
        view[0, 0, 0] = 4
        assert moe.Tensor(view).copy("fp32").numpy()[0, 0, 0] == 4
    assert bf16.copy("fp32").numpy().shape == hidden.shape


def test_device_memory_is_copied_by_name_alone(config, hidden):
    layer = moe.MoELayer(config, moe.random_parameters(config), "naive_gpu:fp32")
    output = layer.forward(hidden).output
    if output.space != "device" or not layer.spec.is_emulated:
        pytest.skip("on a GPU device memory is torch's to look at")
    for look in (output.numpy, output.__dlpack__, output.__dlpack_device__):
        with pytest.raises(moe.InputError, match="copy"):
            look()
    assert output.copy().space == "host"


def test_a_copy_takes_the_dtype_asked_for():
    tensor = moe.Tensor(numpy.array([1.0, 1.0 + 2.0 ** -12]))
    assert tensor.copy().dtype == "fp64"
    assert tensor.copy("fp32").numpy()[1] == 1 + 2.0 ** -12
    assert tensor.copy("bf16").copy("fp64").numpy()[1] == 1.0
    with pytest.raises(moe.InputError, match="fp16"):
        tensor.copy("fp16")
    with pytest.raises(moe.InputError, match="int32"):
        moe.Tensor(numpy.zeros(2, numpy.int32)).copy("fp32")


def test_asarray_converts_only_when_told():
    array = numpy.arange(4.0)
    tensor = moe.Tensor(array)
    assert numpy.shares_memory(numpy.asarray(tensor), array)
    assert numpy.asarray(tensor, numpy.float32).dtype == numpy.float32
    assert not numpy.shares_memory(numpy.array(tensor, copy=True), array)


def test_a_layer_reads_parameters_where_they_are(config, hidden):
    parameters = {name: value.numpy() for name, value
                  in moe.random_parameters(config).items()}
    layer = moe.MoELayer(config, parameters, "reference_cpu:fp32")
    before = layer.forward(hidden).output.copy()
    parameters["experts.linear_fc2.weight"] *= 2
    parameters["shared_experts.linear_fc2.weight"] *= 2
    assert moe.relative_error(layer.forward(hidden).output, before) == pytest.approx(1)


def test_of_dicts_the_wrong_entry_is_named(config):
    parameters = dict(moe.random_parameters(config))
    parameters["router.weight"] = numpy.zeros((5, 20), numpy.float16)
    with pytest.raises(moe.InputError, match="^router.weight = dtype float16"):
        moe.MoELayer(config, parameters)
    with pytest.raises(moe.InputError, match="^parameters = list"):
        moe.MoELayer(config, [])
    with pytest.raises(moe.InputError, match="^parameters = int"):
        moe.MoELayer(config, {1: numpy.zeros(3)})
