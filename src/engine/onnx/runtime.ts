/** ONNX Runtime as palkit loads it; nothing else imports the package. */
import './silence.ts';

export * from 'onnxruntime-node';
