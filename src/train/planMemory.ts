/** What a training process on the CPU holds when it holds most, term by term. */

export interface MemoryTerm {
  readonly what: string;
  readonly bytes: number;
}

/** One compiled program: a stage has one for each size of its micro-batches. */
export interface ProgramMemory {
  readonly nodes: number;
  /** Of frozen weights, in ONNX Runtime's memory. */
  readonly copiesBytes: number;
  /** Of constants that are not the weights as loaded. */
  readonly ownConstantsBytes: number;
  readonly activationBytes: number;
  /** Of dropout. */
  readonly maskBytes: number;
}

export interface MemoryFacts {
  readonly encoders: number;
  readonly featureBytes: number;
  readonly trainedBytes: number;
  readonly frozenBytes: number;
  readonly programs: readonly ProgramMemory[];
}

// Measured; see LOG.md.
const processBytes = 168e6;
const encoderBytes = 20e6;
const nodeBytes = 20e3;

/**
 * The terms of the peak, which is at the end of a stage. No program gives back what its largest activations took.
 */
export function memoryTerms(facts: MemoryFacts): MemoryTerm[] {
  const { encoders, featureBytes, trainedBytes, frozenBytes, programs } = facts;
  const sum = (of: (program: ProgramMemory) => number) =>
    programs.reduce((total, program) => total + of(program), 0);
  const terms = [
    { what: 'Node.js, code, ONNX Runtime', bytes: processBytes },
    { what: 'encoders', bytes: encoders * encoderBytes },
    { what: 'features of all clips', bytes: featureBytes },
    { what: 'the step as programs and as kernels', bytes: nodeBytes * sum(({ nodes }) => nodes) },
    { what: 'frozen weights as loaded', bytes: frozenBytes },
    {
      what: 'constants of the programs, rounded weights among them',
      bytes: sum((own) => own.ownConstantsBytes),
    },
    { what: 'frozen weights, copies of ONNX Runtime', bytes: sum(({ copiesBytes }) => copiesBytes) },
    { what: 'trained parameters, gradients, two moments', bytes: 4 * trainedBytes },
    { what: 'activations', bytes: sum(({ activationBytes }) => activationBytes) },
    { what: 'masks of dropout', bytes: sum((own) => own.maskBytes) },
    { what: "trained parameters, a copy at the stage's end", bytes: trainedBytes },
  ];
  return terms.filter(({ bytes }) => bytes > 0);
}
