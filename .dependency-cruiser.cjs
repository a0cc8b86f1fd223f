/**
 * The floors of the house, from the top. A room imports only from floors below it, never upwards,
 * never sideways (but for the exceptions named here), and never in a circle.
 */
const floors = [
  ['cli'],
  ['ablate'],
  ['train', 'probe', 'upcycle'],
  ['eval'],
  ['pal', 'data'],
  ['llm', 'audio'],
  ['engine', 'ffn'],
  ['tensor', 'config', 'report'],
];

const room = (names) => `^src/(${names.join('|')})/`;

const noUpward = floors.slice(1).map((names, index) => ({
  name: `no-upward-import-from-${names.join('-')}`,
  comment: 'A room may import only from the floors below it.',
  severity: 'error',
  from: { path: room(names) },
  to: { path: [room(floors.slice(0, index + 1).flat()), '^src/index\\.ts$'] },
}));

const noSideways = floors.flatMap((names) =>
  names
    .filter(() => names.length > 1)
    .map((name) => ({
      name: `no-sideways-import-from-${name}`,
      comment: 'Rooms of one floor do not import each other.',
      severity: 'error',
      from: { path: room([name]) },
      to: { path: room(names.filter((other) => other !== name)) },
    })),
);

module.exports = {
  forbidden: [
    ...noUpward,
    ...noSideways,
    {
      name: 'no-unknown-room',
      comment: 'Every folder in src stands on a floor.',
      severity: 'error',
      from: {},
      to: { path: '^src/[^/]+/', pathNot: room(floors.flat()) },
    },
    {
      name: 'only-through-runtime',
      comment: 'ONNX Runtime is loaded by one file, which first tells it to report nothing.',
      severity: 'error',
      from: { pathNot: '^src/engine/onnx/runtime\\.ts$' },
      to: { path: 'node_modules/onnxruntime-node/', pathNot: 'package\\.json$' },
    },
    { name: 'no-circular', severity: 'error', from: {}, to: { circular: true } },
  ],
  options: {
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.json' },
    doNotFollow: { path: 'node_modules' },
  },
};
