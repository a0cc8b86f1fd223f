/**
 * Tells ONNX Runtime, before it is loaded, to keep to itself: since 1.30 the Node.js package reports models and devices
 * to its maker over the network. Who wants that sets ORT_DISABLE_TELEMETRY=0.
 */
process.env.ORT_DISABLE_TELEMETRY ??= '1';
