/** A trained audio-LLM as ONNX files: they run in plain ONNX Runtime, wherever that runs. */
import { join } from 'node:path';
import { portableEncoder } from '../audio/portableEncoder.ts';
import { mustBeEmpty, writeFileAtomic, writeFolderAtomic } from '../config/writeFile.ts';
import { writeOnnxFiles } from '../engine/onnx/modelFile.ts';
import type { Tokenizer } from '../llm/tokenizer.ts';
import { saveTokenizer } from '../llm/weights.ts';
import { portablePrograms } from '../pal/portable.ts';
import { promptFormat } from '../pal/promptFormat.ts';
import type { Program } from '../tensor/program.ts';
import { type ExportOptions, readTrained, withLora } from './export.ts';
import type { TrainedModel } from './modelCard.ts';
import { encoderOf } from './modelFolder.ts';
import { RunError } from './setup.ts';
import { textLimit } from './textLength.ts';

export interface OnnxExportOptions extends Omit<ExportOptions, 'half' | 'lora'> {
  /** Tokens of the longest prompt that the graphs take. */
  readonly promptTokens: number;
  /** Tokens of the longest answer. */
  readonly answerTokens: number;
}

/** How `model.json` describes the folder; `run.py`, which is written beside it, reads no more than this. */
interface PortableDescription {
  readonly version: 1;
  /** Tokens in front of the audio, and the text behind it, in which {question} and {options} are to be filled in. */
  readonly front: readonly number[];
  readonly behind: string;
  /** What the text is encoded behind, and is no part of it: some tokenizers put a space in front of whatever they get. */
  readonly lead: string;
  readonly promptTokens: number;
  readonly answerTokens: number;
  readonly stopIds: readonly number[];
  readonly streams: readonly {
    readonly name: string;
    readonly frames: readonly [frames: number, width: number];
  }[];
  readonly encoders: Readonly<
    Record<
      string,
      {
        readonly sampleRate: number;
        readonly samples: number;
        readonly validBy: string;
        readonly steps: readonly { readonly file: string; readonly input: string; readonly output: string }[];
      }
    >
  >;
}

/**
 * Writes encoders, connectors, the decoder over a prompt and its next step as ONNX files with fixed sizes, for one clip
 * and question at a time. Adapters go into the weights.
 * @throws as `exportAudioLlm`; RunError for sizes that the model does not have
 */
export async function exportOnnx(
  from: string,
  to: string,
  { promptTokens, answerTokens, ...options }: OnnxExportOptions,
): Promise<void> {
  await mustBeEmpty(to);
  const { folder, ...read } = await readTrained(from);
  const limit = textLimit(read.experiment, read.model);
  if (promptTokens + answerTokens > limit) {
    throw new RunError(
      `a prompt of ${promptTokens} tokens and an answer of ${answerTokens} are more than the ${limit} that the model takes: ` +
        'lower --prompt-tokens or --answer-tokens',
    );
  }
  const trained = await withLora(read, { ...options, lora: 'merge' });
  const { experiment, model, llm, parameters } = trained;
  const shape = { batch: 1, promptRows: promptTokens, maxNewTokens: answerTokens };
  const { connectors, prompt, step } = portablePrograms(model, parameters, shape);
  const programs = new Map<string, Program>([
    ...[...connectors].map(([name, program]) => [`connector.${name}`, program] as const),
    ['decoder.prompt', prompt],
    ['decoder.step', step],
  ]);
  const listening = new Map<string, Program>();
  const encoders: Record<string, PortableDescription['encoders'][string]> = {};
  await writeFolderAtomic(to, async (aside) => {
    for (const { name, encoder, frames } of model.streams) {
      const { steps, ...chain } = await portableEncoder(encoderOf(folder, experiment, encoder), frames);
      encoders[name] = {
        ...chain,
        steps: steps.map((one) => ({
          file: `encoder.${name}.${one.name}.onnx`,
          input: one.input,
          output: one.output,
        })),
      };
      for (const one of steps) {
        if ('nodes' in one.model) listening.set(`encoder.${name}.${one.name}`, one.model);
        else await writeFileAtomic(join(aside, `encoder.${name}.${one.name}.onnx`), one.model);
      }
    }
    await writeOnnxFiles(aside, listening, 'encoders.bin');
    await writeOnnxFiles(aside, programs, 'weights.bin');
    await saveTokenizer(aside, llm.tokenizer);
    const description = describe(trained, promptTokens, answerTokens, encoders);
    await writeFileAtomic(join(aside, 'model.json'), `${JSON.stringify(description, null, 2)}\n`);
    await writeFileAtomic(join(aside, 'run.py'), runScript);
  });
}

function describe(
  { experiment, model, llm }: TrainedModel,
  promptTokens: number,
  answerTokens: number,
  encoders: PortableDescription['encoders'],
): PortableDescription {
  const format = promptFormat(experiment.prompt, llm);
  const behindIds = format
    .promptIds({ question: '{question}', options: ['{options}'] })
    .slice(format.front.length);
  return {
    version: 1,
    front: format.front,
    ...textOf(behindIds, llm.tokenizer),
    promptTokens,
    answerTokens,
    stopIds: model.llm.eosTokenIds,
    streams: model.streams.map(({ name, frames, width }) => ({ name, frames: [frames, width] })),
    encoders,
  };
}

/** The text that gives the tokens when it is encoded behind `lead`. @throws RunError when there is none */
function textOf(ids: readonly number[], { encode, decode }: Tokenizer): { behind: string; lead: string } {
  for (const lead of ['', '\n']) {
    const before = lead === '' ? [] : encode(lead);
    const whole = [...before, ...ids];
    const text = decode(whole, { skipSpecial: false });
    if (text.startsWith(lead) && encode(text).join() === whole.join())
      return { behind: text.slice(lead.length), lead };
  }
  throw new RunError(
    `the prompt behind the audio, ${JSON.stringify(decode(ids, { skipSpecial: false }))}, gives other tokens when it ` +
      'is read as text; does prompt.template spell a special token?',
  );
}

/** All that it takes, in the words of ONNX Runtime and numpy. */
const runScript = `"""Asks the model of this folder about a WAV file, with ONNX Runtime alone.

    pip install numpy onnxruntime soundfile tokenizers
    python run.py clip.wav "What do you hear?"
    python run.py clip.wav "Which sound comes first?" "bell, drum"    # where the prompt names options
"""
import json
import pathlib
import re
import sys

import numpy as np
import onnxruntime as ort
import soundfile
from tokenizers import Tokenizer

folder = pathlib.Path(__file__).parent
model = json.loads((folder / "model.json").read_text())
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))


def load(file):
    return ort.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])


def run(session, feeds):
    """Every output by its name; a graph is fed what it asks for."""
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    found = session.run(names, {name: value for name, value in feeds.items() if name in wanted})
    return dict(zip(names, found))


def listen(encoder, samples, sample_rate):
    """Frames [1, F, E] of a clip, and 1 where one is the clip's, 0 where it is padding."""
    if sample_rate != encoder["sampleRate"]:
        sys.exit(f"the clip has {sample_rate} samples a second: resample it to {encoder['sampleRate']}")
    if len(samples) == 0:
        sys.exit("the clip holds no samples")
    if len(samples) > encoder["samples"]:
        sys.exit(f"the clip is longer than {encoder['samples'] / sample_rate:.2f} s")
    value = np.zeros((1, encoder["samples"]), np.float32)
    value[0, : len(samples)] = samples
    valid = None
    for step in encoder["steps"]:
        made = run(load(step["file"]), {step["input"]: value, "samples": np.array([len(samples)], np.int32)})
        value, valid = made[step["output"]], made.get("valid", valid)
    return value, valid


def answer(path, question, options=""):
    samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    heard = {}
    for stream in model["streams"]:
        frames, valid = listen(model["encoders"][stream["name"]], samples.mean(axis=1), sample_rate)
        frames = frames.reshape(1, *stream["frames"])
        for name, value in run(load(f"connector.{stream['name']}.onnx"), {"frames": frames, "valid": valid}).items():
            heard[f"{stream['name']}.{name}"] = value

    filled = {"{question}": question, "{options}": options}
    behind = re.sub(r"\\{question\\}|\\{options\\}", lambda found: filled[found[0]], model["behind"])
    lead = tokenizer.encode(model["lead"], add_special_tokens=False).ids
    prompt = model["front"] + tokenizer.encode(model["lead"] + behind, add_special_tokens=False).ids[len(lead) :]
    if len(prompt) > model["promptTokens"]:
        sys.exit(f"the prompt has {len(prompt)} tokens, the graphs take {model['promptTokens']}")
    ids = np.zeros((1, model["promptTokens"]), np.int32)
    ids[0, : len(prompt)] = prompt
    last = np.array([len(prompt) - 1], np.int32)
    cache = run(load("decoder.prompt.onnx"), {"ids": ids, "last": last, **heard})
    logits = cache.pop("logits")

    step = load("decoder.step.onnx")
    made = []
    while len(made) < model["answerTokens"]:
        token = int(logits[0].argmax())
        if token in model["stopIds"]:
            break
        made.append(token)
        slot = np.array([len(prompt) + len(made) - 1], np.int32)
        feeds = {"token": np.array([token], np.int32), "slot": slot, **cache}
        for name, value in run(step, feeds).items():
            if name == "logits":
                logits = value
            else:
                cache[name.removeprefix("next.")] = value
    return tokenizer.decode(made).strip()


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    print(answer(*sys.argv[1:]))
`;
