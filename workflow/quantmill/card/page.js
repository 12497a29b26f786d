const dark = matchMedia("(prefers-color-scheme: dark)");
function draw() {
  for (const [name, spec] of Object.entries(specs)) {
    vegaEmbed("#" + name, spec, {
      renderer: "svg", actions: false, theme: dark.matches ? "dark" : undefined,
      config: {background: "transparent"},
    }).then(() => document.getElementById(name).setAttribute("data-drawn", "yes"));
  }
}
draw();
dark.addEventListener("change", draw);
