/** Imported before a module of the doctor: ends the process as a driver's crash does, once its first message is out. */
const { send } = process;
if (send !== undefined) {
  process.send = (message: unknown) =>
    send.call(process, message, () => process.kill(process.pid, 'SIGSEGV'));
}
