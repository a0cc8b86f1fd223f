/** Which execution providers of ONNX Runtime really compute on this machine. */
import type { Provider } from '../../engine/onnx/lower.ts';
import type { Check } from './check.ts';
import { type Environment, softwareEnvironment } from './child.ts';
import { tryEngine } from './tryEngine.ts';

const attempt = (provider: Provider, environment: Environment = {}) =>
  tryEngine('onnx', provider, environment);

/** `works: float32, float16 (emulated)` */
const works = (types: readonly string[], where = '') => `works${where}: ${types.join(', ')}`;

/** CPU, WebGPU and CUDA, each tried. */
export async function checkProviders(): Promise<Check[]> {
  // One after the other: each loads a library of its own.
  return [await checkCpu(), await checkWebGpu(), await checkCuda()];
}

async function checkCpu(): Promise<Check> {
  const { ok, reason, types } = await attempt('cpu');
  if (ok) return { what: 'provider cpu', status: 'ok', found: works(types), advice: '' };
  const advice = `ONNX Runtime does not run: ${short(reason)}. Install again: npm ci`;
  return { what: 'provider cpu', status: 'missing', found: 'fails', advice };
}

async function checkWebGpu(): Promise<Check> {
  const what = 'provider webgpu';
  const asIs = await attempt('webgpu');
  if (asIs.ok) {
    const where = isSoftware(process.env.VK_ICD_FILENAMES) ? ' on a software device' : '';
    const found = works(asIs.types, where);
    return { what, status: 'ok', found, advice: '--set engine.provider=webgpu' };
  }
  const environment = softwareEnvironment();
  if (environment !== undefined) {
    const inSoftware = await attempt('webgpu', environment);
    if (inSoftware.ok) {
      const setting = Object.entries(environment)
        .map(([name, value]) => `${name}=${value}`)
        .join(' ');
      const advice = `no GPU driver is found; to try the GPU path slowly: ${setting} palkit ...`;
      return { what, status: 'ok', found: works(inSoftware.types, ' on a software device'), advice };
    }
  }
  const advice = `needs a GPU with a Vulkan, Metal or D3D12 driver (${short(asIs.reason)})`;
  return { what, status: 'optional', found: 'no device', advice };
}

const isSoftware = (drivers: string | undefined) => /swiftshader|lvp/.test(drivers ?? '');

async function checkCuda(): Promise<Check> {
  const what = 'provider cuda';
  const { ok, reason, types } = await attempt('cuda');
  if (ok) return { what, status: 'ok', found: works(types), advice: '--set engine.provider=cuda' };
  const absent = /shared library|not bundled|backend not found/i.test(reason);
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    return {
      what,
      status: 'optional',
      found: 'not on this system',
      advice: 'ONNX Runtime has it for Linux on x64',
    };
  }
  const advice = absent
    ? 'with an NVIDIA GPU, CUDA 12 and cuDNN 9: ONNXRUNTIME_NODE_INSTALL=true npm rebuild onnxruntime-node'
    : `the libraries are there, the GPU does not answer: ${short(reason)}`;
  return { what, status: 'optional', found: absent ? 'libraries not installed' : 'fails', advice };
}

/** The part of a library's message that says something. */
function short(reason: string): string {
  const [line = ''] = reason.split('\n');
  const told = line
    .replace(/^.*was false\. /, '')
    .replace(/^ONNX Runtime \(\w+\) does not take the program: /, '');
  return told.length > 160 ? `${told.slice(0, 160)}...` : told;
}
