"""The acceptance test that travels with an artifact: conversations rendered and tokenized, and golden continuations.

`acceptance/chats.json` shows whether a runtime's template engine and tokenizer do what this machine's did;
`acceptance/golden.json` whether its kernels do: the logits are those of a float32 pass over the artifact's own weights;
`acceptance/fidelity.json` has what the float model says at some of the same places.
"""
