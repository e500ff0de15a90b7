"""How an HTML report looks, on screen and on paper."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light; }
body {
  margin: 0;
  background: #fff;
  color: #222;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", Arial, sans-serif;
}
main { max-width: 60rem; margin: 0 auto; padding: 2.2rem 1.5rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1.1rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem; padding-bottom: .25rem; border-bottom: 1px solid #e2e2e2; }
h3 { font-size: 1rem; margin: 1.7rem 0 .4rem; }
p { margin: .5rem 0; max-width: 48rem; }
a { color: #0060a0; text-underline-offset: 2px; }
ul { margin: .4rem 0; padding-left: 1.2rem; }
.notice { margin: .7rem 0; padding: .55rem .9rem; border-left: 4px solid #888; background: #f6f6f6; max-width: none; }
.notice.observational { border-color: #0072b2; background: #eff6fa; }
.notice.interventional { border-color: #d55e00; background: #fdf3ec; }
.notice.warning { border-color: #e69f00; background: #fdf7e8; }
.notice.failure { border-color: #b3261e; background: #fceeed; }
.notice.supports, .notice.supported { border-color: #009e73; background: #eef8f4; }
.notice.refutes, .notice.refuted { border-color: #b3261e; background: #fceeed; }
.notice.testing { border-color: #56b4e9; background: #f1f8fd; }
dl { margin: .7rem 0; }
dt { color: #666; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
dl.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: .7rem; }
dl.cards div {
  border: 1px solid #e2e2e2;
  border-radius: 6px;
  padding: .55rem .8rem;
  display: grid;
  grid-row: span 3;
  grid-template-rows: subgrid;
  row-gap: .15rem;
}
dl.cards dt { font-size: .82rem; line-height: 1.3; }
dl.cards dd { font-size: 1.4rem; font-weight: 600; }
dd.remark, dl.cards dd.remark { font-size: .82rem; font-weight: 400; color: #666; }
dl.facts { columns: 2 22rem; column-gap: 2.5rem; font-size: .93rem; }
dl.facts div {
  display: flex;
  gap: 1rem;
  justify-content: space-between;
  border-bottom: 1px solid #f0f0f0;
  padding: .16rem 0;
  break-inside: avoid;
}
dl.facts dt { flex: none; max-width: 55%; }
dl.facts dd { text-align: right; }
dl.facts:has(.remark) { columns: 1; max-width: 44rem; }
dl.facts:has(.remark) div { display: grid; grid-template-columns: 1fr 7rem 14rem; align-items: baseline; }
dl.facts:has(.remark) dt { max-width: none; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td {
  text-align: left;
  vertical-align: top;
  padding: .26rem .8rem .26rem 0;
  border-bottom: 1px solid #eee;
  max-width: 18rem;
  overflow-wrap: break-word;
  min-width: 2.5rem;
}
th { color: #555; font-weight: 600; border-bottom-color: #bbb; vertical-align: bottom; overflow-wrap: break-word; }
td { white-space: pre-wrap; }
.n { text-align: right; white-space: nowrap; }
.note { color: #666; font-size: .85rem; }
figure { margin: 1.2rem 0; break-inside: avoid; }
img { max-width: 100%; height: auto; display: block; }
@media print {
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  h2, h3 { break-after: avoid; }
  tr, .notice, dl.cards div { break-inside: avoid; }
  thead { display: table-header-group; }
  .wide { overflow: visible; }
  th, td { overflow-wrap: anywhere; }
  a { color: inherit; }
}
"""
