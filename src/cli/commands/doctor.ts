import { defineCommand } from 'citty';
export const doctor = defineCommand({ meta: { name: 'doctor', description: 'Check' }, args: {}, run() {} });
