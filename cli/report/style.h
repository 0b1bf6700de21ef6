/// @file
/// How the report looks, and what it says about each step.
#pragma once

#include <array>

#include "core/steps.h"

namespace moe {

/// What a step does, for a reader who meets it for the first time.
inline constexpr std::array<const char*, kNumSteps> kStepMeanings = {
    "the MLP that every token visits",
    "logits = X Wᵀ",
    "scores, the K best, their weights",
    "who stays within the capacity",
    "how uneven the load is",
    "token rows into expert order",
    "h = W₁ x",
    "a = act(h) · probability",
    "y = W₂ a",
    "sum of each token’s rows",
    "every row gets its token’s gradient",
    "da, dW₂",
    "dh, dprobability",
    "dx, dW₁",
    "sum of a token’s row gradients",
    "their own gradients, into dlogits",
    "dropped choices lose their gradient",
    "dprobabilities, added to dlogits",
    "dX, dW of the router",
    "undoes step 1",
};

// The eight hues are close to those of Okabe and Ito, told apart by colour-blind eyes.
inline constexpr const char* kReportStyle = R"(
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6675; --paper: #fff;
  --line: #dfe3ea; --ground: #f3f5f8; --shade: #1c243059; --accent: #0072b2; --good: #00795a; --bad: #b3261e;
  --hue0: #0072b2; --hue1: #d55e00; --hue2: #009e73; --hue3: #b8559a; --hue4: #a87b00;
  --hue5: #3f9bd4; --hue6: #7a5cc4; --hue7: #7f7f7f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b2;
  --paper: #12161d; --line: #2c3441; --ground: #1b212b; --shade: #e6e9ef59;
  --accent: #56b4e9;
  --good: #4cc9a0; --bad: #ff8a80; --hue0: #3d9be0; --hue1: #ee7d2b; --hue2: #1fb88c;
  --hue3: #d98cc0; --hue4: #d0a52c; --hue5: #86c5ee; --hue6: #a48be8; --hue7: #a0a0a0; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1240px; margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.01em; }
h2 { margin: 3.2rem 0 .4rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { margin: 2rem 0 .3rem; }
p { max-width: 48rem; margin: .5rem 0 .8rem; }
.soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
.verdict { max-width: none; margin: 1.2rem 0; padding: .7rem 1rem;
  background: var(--ground); border-left: 5px solid; border-radius: 4px;
  overflow-wrap: anywhere; }
.verdict ul { margin: .4rem 0 0; padding-left: 1.2rem; color: var(--ink); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr));
  gap: .6rem; margin: 1.2rem 0; }
.facts div { background: var(--ground); border-radius: 6px; padding: .55rem .8rem; }
.facts dt { font-weight: 600; font-size: 1.15rem; } .facts dt i { color: var(--accent);
  font-family: Georgia, serif; }
.facts dd { margin: 0; color: var(--soft); font-size: 13px; line-height: 1.35; }
pre { background: var(--ground); padding: .8rem 1rem; overflow: auto; border-radius: 6px;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: 14px; max-height: 16rem; }
code { background: var(--ground); border-radius: 3px; padding: .05rem .3rem;
  font-size: .92em; }
/* A shade at each edge that has more; the paper over it scrolls with what is there. */
.wide { overflow-x: auto; background-repeat: no-repeat;
  background-image: linear-gradient(90deg, var(--paper) 40%, transparent),
    linear-gradient(270deg, var(--paper) 40%, transparent),
    linear-gradient(90deg, var(--shade), transparent),
    linear-gradient(270deg, var(--shade), transparent);
  background-position: 0 0, 100% 0, 0 0, 100% 0;
  background-size: 48px 100%, 48px 100%, 18px 100%, 18px 100%;
  background-attachment: local, local, scroll, scroll; }
table { border-collapse: collapse; font-size: 14px; width: 100%; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; white-space: nowrap; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom;
  white-space: normal; }
th:first-child, td:first-child, .words { text-align: left; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); }
th.opens:first-child { position: static; text-align: right; }
@media (max-width: 700px) { th:first-child, td:first-child { position: static; } }
td.words { white-space: normal; min-width: 11rem; overflow-wrap: anywhere; }
th.column { text-align: center; color: var(--ink); overflow-wrap: break-word; }
.opens { border-left: 1px solid var(--line); padding-left: 1rem; }
tr.part td { border: 0; padding-top: 1rem; font-weight: 600; }
tr.off td { color: var(--soft); }
tr.sum td { font-weight: 600; border-bottom: 0; }
td small, th small { display: block; color: var(--soft); font-size: 12px;
  font-weight: 400; }
td small.bad { color: var(--bad); }
.step { display: inline-block; min-width: 1.7em; margin-right: .4em; text-align: center;
  border: 1px solid; border-radius: 1em; font-size: 12px; line-height: 1.5; }
.indent { display: block; padding-left: 2.25rem; }
.key { display: inline-block; margin-right: 1.4rem; white-space: nowrap; }
.key svg { width: 12px; height: 12px; margin-right: .4rem; }
svg.picture { display: block; width: 100%; min-width: 760px; height: auto;
  margin: .6rem 0; overflow: visible; }
svg.share { width: 40px; height: 8px; }
svg text { font: 12px ui-monospace, "DejaVu Sans Mono", monospace; fill: var(--ink);
  paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
svg text.tiny { font-size: 8.5px; fill: var(--soft); }
svg text.faint { fill: var(--soft); }
svg text.onbar { fill: #fff; font-weight: 700; stroke: #0006; stroke-width: 2px; }
.ground { fill: var(--ink); fill-opacity: .06; } .cell { fill: var(--accent); }
.grid { stroke: var(--line); stroke-width: 1; }
.even { stroke: var(--ink); stroke-width: 1.4; stroke-dasharray: 5 4; }
.turn { stroke: var(--ink); stroke-width: 2; }
path { fill: none; stroke-width: 1.5; stroke-opacity: .7; }
.token:hover path { stroke-width: 3; stroke-opacity: 1; }
svg:has(.token:hover) .token:not(:hover) path { stroke-opacity: .12; }
.hue0 { --hue: var(--hue0); } .hue1 { --hue: var(--hue1); } .hue2 { --hue: var(--hue2); }
.hue3 { --hue: var(--hue3); } .hue4 { --hue: var(--hue4); } .hue5 { --hue: var(--hue5); }
.hue6 { --hue: var(--hue6); } .hue7 { --hue: var(--hue7); }
rect[class^=hue] { fill: var(--hue); } path[class^=hue] { stroke: var(--hue); }
.step[class*=hue] { color: var(--hue); }
footer { margin-top: 3rem; color: var(--soft); font-size: 14px; }
@media print { body { max-width: none; } .wide { overflow: visible; } }
)";

}  // namespace moe
