"""Export of a checkpoint to ONNX: graph, precision, parity gate (imported as `darl_rerank.export`)."""
