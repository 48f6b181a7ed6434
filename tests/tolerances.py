"""Every tolerance of the test suite, a constant each, with its reason."""

FLOAT32_LOGITS = 1e-5
"""Of the largest logit: one attention layer in float32, onnxruntime's kernels against numpy's order of summation."""

PROBABILITIES = 1e-4
"""Relative: float32 exponentials of scores up to 30 in size, rounded once in another order than transformers'."""

NUCLEUS_EDGE = 1e-3
"""Of the tokens kept: how many may be kept or cut otherwise by top-p where a float32 running sum has rounded."""

DRAWS = 4.5
"""Standard deviations of a binomial count: once in 150,000 honest runs, and the seed is fixed."""

UNDERFLOW = 1e-30
"""Probabilities below are nothing: float32 weights end at 1e-45 and transformers' float64 ones do not."""

EXPORTED_LOGITS = 1e-4
"""Exported float32 graph against transformers in float32, eager attention: largest difference relative to the largest
logit. Both sum the same float32 products in another order; measured 1e-6 on tiny models, and real depths add."""

INT8_ACTIVATIONS_RMS = 0.03
"""int4 and int8 graphs against float32 on the dequantized weights, root mean square. `accuracy_level=4` rounds
activations to 8 bits per block of 32: about 0.5 % noise per product, growing with every layer."""

SAME_KERNELS = 1e-5
"""The same graph through two hosts of the same onnxruntime kernels: only the threads' split of sums may differ."""

REFERENCE_LOGITS = 1e-5
"""Of the largest logit: the streamed numpy pass against transformers in float32 (measured on tiny models: 7e-7)."""

REFERENCE_STD = 1e-5
"""Relative: a standard deviation from float64 sums of pieces, against numpy's over the whole vocabulary."""

GOLDEN_DECIMALS = 1e-4
"""Golden logits of about 3 are written with four decimals: half a unit of the last, and float32 noise."""

TINY_LOSS = 0.330
"""Nats per token of held-out text: the tiny model's README says 0.3276, and kernels differ in the fourth digit."""

TINY_INT4_LOSS = 0.335
"""The same after rounding to 4 bits, embeddings to 8 (measured 0.3292): a broken grid costs far more."""

TINY_RIGHT = 0.98
"""Share of held-out questions answered word for word; the README says 99.5 %, and near ties may fall otherwise."""

BOMB_SECONDS = 10.0
"""A hostile template with a limit of half a second: tracing its allocations and one long built-in call come on top."""

BOMB_BYTES = 400e6
"""What a hostile template may allocate: the budget of 256 MB, and one value of 16 MB in the making, a few times."""

VERIFY_FLOAT32_STD = 1e-4
"""Deviations between numpy's and onnxruntime's logits of one float32 attention layer: only sums in another order."""

FLOAT16_LOGITS = 5e-3
"""Of the largest logit: one attention layer stored and, in part, summed in float16 (11 bits), against float32."""

GGML_RELATIVE_ERROR = {
    "F32": 0, "F16": 2.3e-4, "BF16": 1.8e-3, "Q8_0": 5.7e-3, "Q6_K": 0.0185, "Q5_K": 0.038, "Q5_1": 0.040,
    "Q5_0": 0.044, "Q4_K": 0.074, "IQ4_NL": 0.080, "IQ4_XS": 0.081, "Q4_1": 0.082, "Q4_0": 0.089, "MXFP4": 0.12,
    "Q3_K": 0.16, "IQ3_S": 0.172, "IQ3_XXS": 0.223, "IQ2_S": 0.28, "IQ2_XS": 0.29, "Q2_K": 0.31, "IQ2_XXS": 0.35,
    "IQ1_M": 0.52, "IQ1_S": 0.52, "TQ1_0": 0.83, "TQ2_0": 0.83,
}  # fmt: skip
"""Root mean square, of normal weights quantized by ggml: as measured on 25,000, and 5 % for other samples. A type that
did better by half would be another one. IQ2_XS and coarser weighed by the importance matrix they were given."""

LLAMACPP_LOGITS = 1e-5
"""Of the largest logit: llama.cpp on an F32 file against transformers in float32 (measured on tiny models: 4e-6)."""

TOY_GGUF_LOGITS = 4e-3
"""Of the largest logit: float32 weights with keys, values and attention in float16, against numpy's float32; measured
6e-4 on a layer of the toy model."""

Q8_KV_LOGITS = 3e-2
"""The same with keys and values in 8 bits, blocks of 32."""

ENGINE_STD = 0.5
"""Deviations between the engines' logits on one set of weights: each rounds activations to 8 bits in its own way, and
llama.cpp keeps keys and values in float16; measured 0.07 on the tiny model."""

ENGINE_TIE_STD = 0.1
"""Deviations between the best two logits under which the engines may choose different tokens; measured: none does."""

BATCH_STD = 0.3
"""Deviations between a sequence's logits in a batch and alone: llama.cpp has other kernels for several rows, and a code
of an activation that falls the other way is felt; mostly 0, measured at most 0.04 (tiny model) and 0.11 (0.5B)."""

BATCH_TIE_STD = 0.3
"""Deviations between two tokens' logits under which a batch may choose the other one."""

MERGED_WEIGHTS = 1e-6
"""Of a tensor's largest weight: a LoRA merge in float32 against PEFT's, sums of a few products in another order."""

LLAMA_PERPLEXITY = 2e-4
"""Relative: llama.cpp prints KL divergences of 0.06 with six decimals, saved logits have 16 bits (measured: 3e-5)."""

DOUBLE = 1e-9
"""Relative: sums of 300 numbers in float64, in another order."""

FLOAT_KL = 1e-9
"""Nats: float32 weights in numpy and in onnxruntime, whose logits differ by 1e-6 (measured: 1e-13)."""

FILE_BITS = 0.01
"""Relative: bits per weight from a file's tensor bytes, where the manifest leaves out the padding between tensors."""

ENGINES_KL = 0.2
"""Relative: mean KL divergence of one set of weights in both engines, each with its own 8-bit activations, over 124
positions."""

LOG_PROBABILITIES = 2e-5
"""Written with five decimals: half a unit of the last, and float32 noise."""

DIVERGENCE = 1e-3
"""Relative: KL divergences of 1e-3 nats from float32 logits against transformers' in float64; each is a sum of second
order in differences that float32 knows to 1e-4."""

KL_ESTIMATE = 1e-4
"""Of the KL divergence, or nats: logits up to 60 rounded to float32."""

IMPORTANCE = 2e-3
"""Relative: mean squares of inputs against llama-imatrix's, whose keys and values are float16 (measured: 5e-4)."""

GPTQ_LAYER_ERROR = 0.02
"""Relative: a code on the edge between two steps falls either way in float32, and later columns answer it."""

GPTQ_SAME_VALUES = {4: 0.97, 8: 0.8}
"""Share of weights equal to those of a float64 implementation, by bits: the rest lie behind such an edge in their row,
and in 8 bits scales that are tried differ by half a percent, so that one or the other wins by rounding."""

GPTQ_FACTOR = 2e-5
"""Of the largest element: float32 sums of a few hundred products, with panels factored in float64."""

COSINE_FLOAT = 0.99999
"""Of an exported float32 encoder's vectors to transformers': only the order of summation differs."""

COSINE_INT8 = 0.97
"""Of a small random BERT's vectors in int8 (measured: 0.996 at least); its 32 inputs average out little."""

COSINE_MINILM_INT8 = 0.97
"""Of MiniLM's vectors in int8, dynamic and per channel: 0.986 at least over the test's sentences with VNNI, and 0.984
over others; processors without it, where pairs of products saturate, lose more."""

MOMENTS = 1e-5
"""Relative: squares of float32 inputs, which two ways of computing give with other roundings."""

HESSIAN = 1e-5
"""Of the largest element: float32 sums of products over a few hundred tokens."""

SERVED_LOGPROB = 1e-4
"""Of a token's log probability: it goes through float32 and JSON."""

SERVED_LOGPROB_AT_ONCE = 2e-2
"""Likewise, where the engine alone runs the prompt at once: int4 kernels round that differently than token by token."""

ANSWER_SECONDS = 20.0
"""For an answer kept to a random schema by an engine that costs nothing (measured: 0.15): what hangs takes longer."""

WASM_LOGITS = 1e-4
"""Logits in WebAssembly against native onnxruntime with float32 activations: the same sums in another order."""

WASM_TIE_STD = 1e-5
"""Deviations between the best two logits under which those two may choose different tokens."""

HALF_RMS_STD = 0.02
"""Of the logits' deviation, root mean square: activations of 11 significant bits against 24, through a few layers
(measured on the tiny model: 0.008)."""

TILED_LOGITS = 1e-5
"""Of logits, and of keys and values: the same sums of float32, by kernels that may go through them by other steps."""

WEBGPU_KL = 0.05
"""Nats: shaders round activations to 8 bits, as native onnxruntime does by default."""

WEBGPU_RMS_STD = 0.05
"""Of the logits' deviation, root mean square, for the same reason (measured: 0.025; native: 0.014)."""

WEBGPU_TIE_STD = 0.1
"""Deviations between the best two logits under which they may choose a different token."""

CUT_SHORT_SECONDS = 45.0
"""For what is told to end long before its 60 seconds are over (measured: 1 to 2): what goes on takes them all."""

HOSTILE_YAML_SECONDS = 10.0
"""Of processor time, for a recipe of 60,000 hostile characters: half a second for the slowest on a quiet machine; work
that grows with the square of their number takes minutes."""

HOSTILE_SECONDS = 20.0
"""For one hostile request on a busy machine; the longest, a schema of 3,000 members, takes a second on a quiet one."""

RUNNER_LOGIT_ERROR_STD = 0.02
"""Between the largest logit errors of llama.cpp's kernels for ARM and for this machine, in deviations: 0.005 to 0.01
measured; they round activations alike and add in another order."""

RUNNER_TIE_STD = 0.1
"""Deviations between the best two logits under which those kernels may choose different tokens: twice the error that
either has against the golden logits (0.05)."""

CALIBRATION_MEMORY = 0.7
"""Of the memory stated for choosing codes, beside the interpreter: what is taken at least. A plan that says far more
refuses machines that would do; one that says less runs them out of memory."""

GAIN = 0.4
"""Of what raising a tensor gains, between what 512 tokens showed and the whole text: chance of the text's parts."""
