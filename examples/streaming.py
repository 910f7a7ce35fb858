"""Text as it is generated, and a conversation through the chat template. Run: python examples/streaming.py"""

from octavo import LLM, SamplingParams

llm = LLM(num_blocks=256)
params = SamplingParams(max_tokens=60, seed=7, stop=["The end"])

prompt = "A fisherman cast his net into the sea, and"
print(prompt, end="")
for delta in llm.stream(prompt, params):
    print(delta.text, end="", flush=True)
print(f"\n[ended by: {delta.finish_reason}]\n")

messages = [{"role": "user", "content": "There was once a princess who would not laugh."}]
for delta in llm.stream(messages, params):
    print(delta.text, end="", flush=True)
    if len(delta.output.outputs[0].token_ids) >= 30:
        break  # leaving the loop withdraws the request: its memory is free at once
print()

assert not llm.engine.has_unfinished()
llm.close()
