(() => {
  "use strict";
  const { charts, names } = JSON.parse(document.getElementById("data").textContent);
  const hidden = charts.map(() => new Set());
  const axis = charts.map(() => "x");
  const dashes = ["solid", "dash", "dot", "dashdot"];
  const touch = matchMedia("(pointer: coarse)").matches;

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Centred mean over about a twentieth of the curve.
  function smooth(y, half) {
    const sums = [0];
    y.forEach((v) => sums.push(sums[sums.length - 1] + v));
    return y.map((_, i) => {
      const a = Math.max(0, i - half), b = Math.min(y.length, i + half + 1);
      return Number(((sums[b] - sums[a]) / (b - a)).toPrecision(6));
    });
  }

  function traces(section, chart) {
    const out = [];
    for (const s of chart.series) {
      const colour = css(`--c${s.run % 8}`);
      const line = { color: colour, width: 2, dash: dashes[Math.floor(s.run / 8) % 4] };
      const x = axis[section] === "x" ? s.x : s.t;
      const common = { x, name: names[section][s.run], visible: !hidden[section].has(s.run), showlegend: false };
      if (s.up) {
        out.push({
          ...common, y: s.y, mode: "lines+markers", line, marker: { color: colour, size: 7 },
          error_y: { type: "data", array: s.up, arrayminus: s.down, color: colour, thickness: 1.5, width: 4 },
        });
        continue;
      }
      const half = Math.floor(s.y.length / 40);
      if (half > 0) {
        out.push({ ...common, y: s.y, mode: "lines", line: { ...line, width: 1 }, opacity: 0.28, hoverinfo: "skip" });
        out.push({ ...common, y: smooth(s.y, half), mode: "lines", line });
      } else {
        out.push({ ...common, y: s.y, mode: s.y.length > 1 ? "lines" : "markers", line, marker: { color: colour, size: 7 } });
      }
    }
    return out;
  }

  function layout(section) {
    const ink = css("--quiet"), grid = css("--grid");
    const line = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true, ticks: "" };
    const title = axis[section] === "x" ? "steps" : "seconds";
    return {
      autosize: true, margin: { l: 44, r: 8, t: 8, b: 36 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: ink }, dragmode: touch ? false : "zoom",
      hovermode: "x unified", hoverlabel: { bgcolor: css("--panel"), bordercolor: grid, font: { color: css("--ink") } },
      xaxis: { ...line, title: { text: title, standoff: 6 }, rangemode: "tozero" },
      yaxis: { ...line, nticks: 6, hoverformat: ".4g", exponentformat: "power" },
    };
  }

  function draw(section) {
    for (const chart of charts[section]) {
      const place = document.getElementById(`chart-${section}-${chart.key}`);
      Plotly.react(place, traces(section, chart), layout(section), { displayModeBar: false });
    }
  }

  const press = (button, on) => button.setAttribute("aria-pressed", String(on));

  for (const bar of document.querySelectorAll(".controls")) {
    const section = Number(bar.dataset.section);
    bar.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.dataset.axis) {
        axis[section] = button.dataset.axis;
        for (const b of bar.querySelectorAll("[data-axis]")) press(b, b === button);
      } else {
        const run = Number(button.dataset.run);
        if (!hidden[section].delete(run)) hidden[section].add(run);
        press(button, !hidden[section].has(run));
      }
      draw(section);
    });
  }

  const all = () => charts.forEach((_, section) => draw(section));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  all();
  const resized = new ResizeObserver((entries) => entries.forEach((e) => Plotly.Plots.resize(e.target)));
  for (const place of document.querySelectorAll(".chart")) resized.observe(place);
})();
