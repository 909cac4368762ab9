// Objects of Kubernetes operators and dashboards of Grafana against the types and schemas that those publish.
// The compiler finds unknown fields and wrong types, the validators wrong patterns and ranges.
//
//     node check.mjs OBJECTS.json DASHBOARD.json...
//
// Runs where the packages of package.json are installed.

import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";

const PACKAGES = {
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
  "keda.sh": "@kubernetes-models/keda",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
};
// Mistakes that must be found, as many as there are kinds: a path and what is written there instead.
const MISTAKES = {
  HTTPRoute: [[["spec", "rules", 0, "timeout"], {}], [["spec", "rules", 0, "timeouts", "request"], "620 s"]],
  ScaledObject: [[["spec", "minReplicas"], 2], [["spec", "triggers", 0, "metadata", "threshold"], 44]],
  PodMonitor: [[["spec", "podMetricsEndpoints", 0, "intervall"], "15s"], [["spec", "podMetricsEndpoints", 0, "interval"], "15 s"]],
};
// Kinds of panels whose options have types, and what the drawing of their fields has.
const PANELS = {
  heatmap: ["heatmap/panelcfg/x/HeatmapPanelCfg", "heatmap.FieldConfig"],
  stat: ["stat/panelcfg/x/StatPanelCfg", "Record<string, never>"],
  timeseries: ["timeseries/panelcfg/x/TimeSeriesPanelCfg", "timeseries.FieldConfig"],
};
// What Prometheus as a data source adds to variables and annotations, of which no types are published.
const PROMETHEUS = ["definition", "expr", "titleFormat"];

const [objectsFile, ...dashboards] = process.argv.slice(2);
const objects = JSON.parse(readFileSync(objectsFile)).filter(({ apiVersion }) => apiVersion.split("/")[0] in PACKAGES);
const lines = [
  'import type { Dashboard, Panel, RowPanel } from "@grafana/schema";',
  ...Object.entries(PANELS).map(([type, [path]]) => `import type * as ${type} from "@grafana/schema/dist/esm/raw/composable/${path}_types.gen";`),
  // Enumerations as the words that stand in files, and only the settings that are set.
  "type Plain<T> = T extends string ? `${T}` : T extends number ? `${T}` extends `${infer N extends number}` ? N : number",
  "  : T extends (infer U)[] ? Plain<U>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;",
  "type Set<T> = T extends (infer U)[] ? Set<U>[] : T extends object ? { [K in keyof T]?: Set<T[K]> } : T;",
];

function changed(value, [path, instead]) {
  const copy = structuredClone(value);
  const last = path.slice(0, -1).reduce((at, key) => at[key], copy);
  last[path.at(-1)] = instead;
  return copy;
}

function typed(type, value, wrong = false) {
  if (wrong) lines.push("// @ts-expect-error");
  lines.push(`(${JSON.stringify(value)}) satisfies ${type};`);
}

const seen = new Set();
for (const object of objects) {
  const { apiVersion, kind } = object;
  const from = `${PACKAGES[apiVersion.split("/")[0]]}/${apiVersion}`;
  const { [kind]: Model } = await import(from);
  new Model(object).validate();
  if (seen.has(kind)) continue;
  seen.add(kind);
  lines.push(`import type { I${kind} } from "${from}";`);
  typed(`I${kind}`, object);
  const [unknown, malformed] = MISTAKES[kind].map((mistake) => changed(object, mistake));
  typed(`I${kind}`, unknown, true);
  let found = false;
  try {
    new Model(malformed).validate();
  } catch {
    found = true;
  }
  if (!found) throw new Error(`${kind}: ${JSON.stringify(MISTAKES[kind][1])} was not found`);
}

let panels = 0;
for (const file of dashboards) {
  const { panels: all, ...board } = JSON.parse(readFileSync(file));
  for (const item of [...board.templating.list, ...board.annotations.list]) for (const name of PROMETHEUS) delete item[name];
  typed("Plain<Set<Dashboard>>", board);
  typed("Plain<Set<Dashboard>>", { ...board, graphTooltips: 1 }, true);
  for (const panel of all) {
    panels += 1;
    const { fieldConfig, options, ...rest } = panel;
    if (!(panel.type in PANELS)) {
      typed(panel.type === "row" ? "Plain<Set<RowPanel>>" : "Plain<Set<Panel>>", panel);
      continue;
    }
    const { custom, ...defaults } = fieldConfig.defaults;
    typed("Plain<Set<Panel>>", { ...rest, fieldConfig: { ...fieldConfig, defaults } });
    typed("Plain<Set<Panel>>", { ...rest, fieldConfig: { defaults: { ...defaults, units: "s" } } }, true);
    typed(`Plain<Set<${panel.type}.Options>>`, options);
    typed(`Plain<Set<${panel.type}.Options>>`, { ...options, colorsMode: "value" }, true);
    typed(`Plain<Set<${PANELS[panel.type][1]}>>`, custom);
  }
}
writeFileSync("check.ts", lines.join("\n"));
execFileSync("node_modules/.bin/tsc", ["--strict", "--noEmit", "--skipLibCheck", "--module", "nodenext", "check.ts"], { stdio: "inherit" });
console.log(`${[...seen].sort().join(", ")} as their operators define them; ${dashboards.length} dashboards of ${panels} panels as Grafana does`);
