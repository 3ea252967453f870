// Charts on uPlot, each with its numbers as a table: what is drawn on a canvas can only be seen.

import { make } from "/web/api.js";
import { NONE, table } from "/web/dashboard-format.js";

const ROWS = 30;
const dark = matchMedia("(prefers-color-scheme: dark)");

/**
 * A chart in `host`. `x` is `{ label, time, format, tick }`, `series` is `[{ label, format, bars, joined }]`,
 * `range` the y-axis where it is fixed. `show` takes `[xs, ys, …]`, with null where there is no value.
 */
export class Chart {
  constructor(host, title, x, series, range) {
    this.x = x;
    this.series = series;
    this.range = range;
    this.values = series.map(() => make("b", {}));
    this.plotted = make("div", { class: "plot", role: "img" });
    this.numbers = make("div", { class: "numbers", tabindex: "0", role: "region", "aria-label": `${title}: numbers` });
    this.details = make("details", { ontoggle: () => this.list() }, make("summary", {}, "As a table"), this.numbers);
    const legends = series.map((one, index) =>
      make("span", { class: `legend series-${index + 1}` }, `${one.label} `, this.values[index]),
    );
    const caption = make("figcaption", {}, make("strong", {}, title), ...legends);
    this.figure = make("figure", { hidden: true }, caption, this.plotted, this.details);
    host.append(this.figure);
    this.title = title;
    this.columns = [[], ...series.map(() => [])];
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.plotted);
    dark.addEventListener("change", () => this.plot && this.draw());
  }

  show(columns) {
    if (JSON.stringify(columns) === JSON.stringify(this.columns)) return;
    this.columns = columns;
    this.figure.hidden = columns[0].length === 0;
    if (this.figure.hidden) return;
    if (this.plot) this.plot.setData(columns);
    else this.draw();
    this.read(null);
    this.list();
    const last = this.series.map((one, index) => `${one.label} ${this.value(index, columns[0].length - 1)}`);
    const words = `${this.title}. The last values: ${last.join(", ")}. All are in the table below.`;
    this.plotted.setAttribute("aria-label", words);
  }

  value(index, at) {
    const found = this.columns[index + 1][at];
    return found == null ? NONE : this.series[index].format(found);
  }

  /** The values under the pointer, or the last ones. */
  read(at) {
    this.values.forEach((shown, index) => {
      shown.textContent = this.value(index, at ?? this.columns[0].length - 1);
    });
  }

  list() {
    if (!this.details.open) return;
    const total = this.columns[0].length;
    const step = Math.max(1, Math.ceil(total / ROWS));
    const rows = this.columns[0]
      .map((x, at) => [this.x.format(x), ...this.series.map((_, index) => this.value(index, at))])
      .filter((_, at) => (total - 1 - at) % step === 0)
      .reverse();
    this.numbers.replaceChildren(
      table(this.title, [this.x.label, ...this.series.map((one) => one.label)], rows, this.series.map((_, i) => i + 1)),
    );
  }

  size() {
    return { width: Math.max(this.plotted.clientWidth, 200), height: 120 };
  }

  draw() {
    this.plot?.destroy();
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: color("--muted"), grid: { stroke: color("--line"), width: 1 }, ticks: { show: false } };
    this.plot = new uPlot(
      {
        ...this.size(),
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false } },
        scales: { x: { time: Boolean(this.x.time), range: this.series[0].bars ? padded : undefined }, y: { range: this.range ?? fromZero } },
        axes: [
          { ...axis, size: 30, grid: { show: false }, values: (_, values) => values.map((value) => this.x.tick(value)) },
          { ...axis, size: 56, values: (_, values) => values.map((value) => this.series[0].format(value)) },
        ],
        series: [
          {},
          ...this.series.map((one, index) => ({
            stroke: color(`--series-${index + 1}`),
            width: 2,
            spanGaps: Boolean(one.joined),
            points: { show: one.joined ? true : undefined, size: 6 },
            ...(one.bars ? { fill: color(`--series-${index + 1}`), width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.7, 40] }) } : {}),
          })),
        ],
        hooks: { setCursor: [(plot) => this.read(plot.cursor.idx)] },
      },
      this.columns,
      this.plotted,
    );
  }
}

const fromZero = (_, low, high) => [0, high > 0 ? 1.1 * high : 1];
const padded = (plot, low, high) => {
  const step = plot.data[0].length > 1 ? plot.data[0][1] - plot.data[0][0] : 1;
  return [low - step / 2, high + step / 2];
};
