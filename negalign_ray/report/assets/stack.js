// Areas upon each other; all series have the same steps.

function stackBounds(series) {
  return [0, 1.04 * Math.max(...series[0].x.map((_, index) => series.reduce((sum, one) => sum + one.y[index], 0)))];
}

function areas(chart) {
  const floor = chart.data.series[0].x.map(() => 0);
  return chart.data.series.map((one) => {
    const point = (index, value) => `${chart.across(one.x[index]).toFixed(1)} ${chart.upward(value).toFixed(1)}`;
    const below = floor.map((value, index) => point(index, value)).reverse();
    one.y.forEach((value, index) => { floor[index] += value; });
    const above = floor.map((value, index) => point(index, value));
    return draw("path", { class: `area tone-${one.tone}`, d: `M${[...above, ...below].join("L")}Z` });
  });
}
