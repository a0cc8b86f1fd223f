/** What `--help` shows under EXAMPLES, by command. */
export const examples: Readonly<Record<string, readonly string[]>> = {
  train: [
    'palkit train configs/default.yaml',
    'palkit train configs/prefix.yaml --set seed=8 --set run.dir=runs/prefix-8',
    'palkit train configs/default.yaml --set train.maxSteps=20 --no-eval',
  ],
  eval: [
    'palkit eval runs/default',
    'palkit eval runs/default --split validation --json',
    'palkit eval configs/prefix.yaml --limit 100',
  ],
  ask: [
    'palkit ask clip.wav "What do you hear?"',
    'palkit ask clip.wav "Which sound comes first?" --options "bell, drum, siren"',
    'palkit ask clip.wav "Is there a bell?" --options "yes, no" --run runs/prefix --json',
  ],
  plan: [
    'palkit plan configs/default.yaml',
    'palkit plan configs/prefix.yaml --stage closed --set train.batchSize=64 --json',
    'palkit plan configs/default.yaml --gflops-per-thread 40 --gb-per-second 20',
  ],
  profile: [
    'palkit profile configs/default.yaml',
    'palkit profile configs/default.yaml --stage closed --steps 10 --out step.svg',
    'palkit profile configs/prefix.yaml --stage 3 --json',
  ],
  routing: [
    'palkit routing runs/topk',
    'palkit routing runs/topk --limit 500 --split validation --json',
    'palkit routing my-audio-llm --set data.dir=data/sound-world --out routing-of-my-audio-llm',
  ],
  lm: [
    'palkit lm configs/lm/debian.yaml',
    'palkit lm configs/lm/debian.yaml --set corpus.folders=[docs] --set corpus.heldOut=0.4 --set train.steps=50 --set run.dir=runs/lm-docs',
    'palkit lm configs/lm/convert.yaml --json',
  ],
  similarity: [
    'palkit similarity runs/default runs/wide',
    'palkit similarity runs/default runs/wide runs/shared --baseline runs/default --baseline runs/default-8 --out comparison',
  ],
  export: [
    'palkit export runs/default --format audio-llm --out my-audio-llm',
    'palkit export runs/lora --format hf --out my-llm',
    'palkit export runs/lora --format hf --lora keep --half --out my-llm-and-adapter',
  ],
  data: ['palkit data list', 'palkit data build sound-world', 'palkit data show configs/default.yaml'],
  'data list': ['palkit data list', 'palkit data list --json'],
  'data build': [
    'palkit data build sound-world --dir data/sound-world',
    'palkit data build sound-world --set settings.seed=2 --dir data/other-world',
    'palkit data build spoken-prompts',
  ],
  'data show': [
    'palkit data show configs/default.yaml --n 1',
    'palkit data show configs/default.yaml --split test --set prompt.system="Listen." --json',
  ],
  doctor: ['palkit doctor', 'palkit doctor --json', 'palkit doctor --engine webgpu configs/default.yaml'],
};
