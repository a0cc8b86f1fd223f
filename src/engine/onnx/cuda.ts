/**
 * What of the CUDA provider's options reaches ONNX Runtime. Its Node binding passes the device's number and drops
 * everything else; of the rest, TF32 alone can be set in another way.
 */
import { EngineError } from '../engine.ts';

export interface CudaOptions {
  /** Number of the GPU, as CUDA counts; the first when left out. */
  readonly device?: number | undefined;
  /** Whether float32 products may use TensorFloat-32, with ten bits of mantissa; ONNX Runtime's choice is yes. */
  readonly tf32?: boolean | undefined;
}

/** Read by NVIDIA's libraries when they are loaded, with the first session: 0 forbids TF32 in the whole process. */
export const tf32Variable = 'NVIDIA_TF32_OVERRIDE';

/** The provider as a session takes it. */
export function cudaProvider({ device = 0 }: CudaOptions): { name: 'cuda'; deviceId: number } {
  return { name: 'cuda', deviceId: device };
}

/**
 * Forbids TF32, where that is asked for. It has to come before the process's first CUDA session.
 * @param environment that of the process
 * @throws EngineError when TF32 is asked for, and the environment forbids it
 */
export function chooseTf32({ tf32 }: CudaOptions, environment: NodeJS.ProcessEnv = process.env): void {
  if (tf32 === false) environment[tf32Variable] = '0';
  else if (tf32 === true && environment[tf32Variable] === '0') {
    throw new EngineError(
      `engine.tf32: true, but ${tf32Variable}=0 forbids it in this process: unset the variable, or set engine.tf32 to false`,
    );
  }
}
