/** Renders chat templates in a thread that can be ended, and whose memory is bounded: see chatTemplate.ts. */
import { workerData } from 'node:worker_threads';
import { Environment, Interpreter, Template } from '@huggingface/jinja';

const { port, state, longestOutput } = workerData;
/** By the template's text; parsed once. */
const parsed = new Map();

port.on('message', ({ template, variables, date }) => {
  let answer;
  try {
    if (!parsed.has(template)) parsed.set(template, new Template(template));
    const text = render(parsed.get(template), variables, date);
    answer =
      text.length > longestOutput
        ? { problem: `its output has ${text.length} characters, at most ${longestOutput} are taken` }
        : { text };
  } catch (error) {
    answer = { problem: String(error instanceof Error ? error.message : error).slice(0, 1000) };
  }
  port.postMessage(answer);
  Atomics.store(state, 0, 1);
  Atomics.notify(state, 0);
});

/** As `Template.render`, with the globals of transformers: the library's own know today alone. */
function render({ parsed }, variables, date) {
  const environment = new Environment();
  const globals = {
    ...{ true: true, false: false, none: null, True: true, False: false, None: null },
    range,
    strftime_now: (format) => strftime(date, format),
    raise_exception: (message) => {
      throw new Error(message);
    },
  };
  for (const [name, value] of Object.entries({ ...globals, ...variables })) environment.set(name, value);
  return new Interpreter(environment).run(parsed).value;
}

const longestRange = 100_000;

function range(...given) {
  const [start, stop, step = 1] = given.length === 1 ? [0, given[0]] : given;
  const count = Math.max(0, Math.ceil((stop - start) / step));
  if (!(count <= longestRange)) throw new Error(`range(${given.join(', ')}) is longer than ${longestRange}`);
  return Array.from({ length: count }, (_, at) => start + at * step);
}

const days = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday'];
const months = [
  ...['January', 'February', 'March', 'April', 'May', 'June'],
  ...['July', 'August', 'September', 'October', 'November', 'December'],
];

/** Python's strftime at midnight of a day, in the C locale. */
function strftime(date, format) {
  const at = new Date(`${date}T00:00:00Z`);
  const two = (number) => String(number).padStart(2, '0');
  const [year, month, day, weekday] = [
    at.getUTCFullYear(),
    at.getUTCMonth(),
    at.getUTCDate(),
    at.getUTCDay(),
  ];
  const dayOfYear = 1 + (Date.UTC(year, month, day) - Date.UTC(year, 0, 1)) / 86_400_000;
  const fields = {
    '%Y': String(year),
    '%y': two(year % 100),
    '%m': two(month + 1),
    '%-m': String(month + 1),
    '%B': months[month],
    '%b': months[month].slice(0, 3),
    '%d': two(day),
    '%-d': String(day),
    '%j': String(dayOfYear).padStart(3, '0'),
    '%A': days[weekday],
    '%a': days[weekday].slice(0, 3),
    '%H': '00',
    '%I': '12',
    '%M': '00',
    '%S': '00',
    '%p': 'AM',
    '%%': '%',
  };
  return String(format).replace(/%-?./gs, (field) => {
    if (!(field in fields)) throw new Error(`strftime_now does not know ${field}`);
    return fields[field];
  });
}
