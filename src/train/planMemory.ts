/** What a training process on the CPU holds when it holds most, term by term. */

export interface MemoryTerm {
  readonly what: string;
  readonly bytes: number;
}

export interface MemoryFacts {
  readonly encoders: number;
  readonly featureBytes: number;
  readonly trainedBytes: number;
  readonly frozenBytes: number;
  readonly activationBytes: number;
  /** Nodes of the step's program. */
  readonly nodes: number;
}

// Measured; see LOG.md.
const processBytes = 168e6;
const encoderBytes = 20e6;
const nodeBytes = 20e3;
/** Copies of the frozen weights while ONNX Runtime takes them in, and later, beside the ones that were loaded. */
const frozenCopies = { whileCompiling: 4.75, afterwards: 2.9 };

/**
 * The terms of the peak: either when the frozen weights are compiled in, or when activations are held.
 */
export function memoryTerms(facts: MemoryFacts): MemoryTerm[] {
  const { encoders, featureBytes, trainedBytes, frozenBytes, activationBytes, nodes } = facts;
  const always = [
    { what: 'Node.js, code, ONNX Runtime', bytes: processBytes },
    { what: 'encoders', bytes: encoders * encoderBytes },
    { what: 'features of all clips', bytes: featureBytes },
    { what: 'the step as a program and as kernels', bytes: nodes * nodeBytes },
    { what: 'frozen weights as loaded', bytes: frozenBytes },
  ];
  const compiling = [
    ...always,
    {
      what: 'frozen weights, copies while they are compiled in',
      bytes: frozenCopies.whileCompiling * frozenBytes,
    },
    { what: 'trained parameters as loaded', bytes: trainedBytes },
  ];
  const training = [
    ...always,
    { what: 'frozen weights, copies of ONNX Runtime', bytes: frozenCopies.afterwards * frozenBytes },
    { what: 'trained parameters, gradients, two moments', bytes: 4 * trainedBytes },
    { what: 'activations', bytes: activationBytes },
    { what: "trained parameters, a copy at the stage's end", bytes: trainedBytes },
  ];
  const sum = (terms: readonly MemoryTerm[]) => terms.reduce((total, { bytes }) => total + bytes, 0);
  return sum(compiling) > sum(training) ? compiling : training;
}
