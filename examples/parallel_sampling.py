"""Several continuations of one prompt: samples and beams, forked from one copy of the prompt's memory.

Run: python examples/parallel_sampling.py
"""

from octavo import LLM, SamplingParams

llm = LLM(num_blocks=256)
prompt = "Once upon a time, in a castle on a hill, there lived a giant who"

samples = llm.generate(prompt, SamplingParams(n=4, temperature=0.9, seed=5, max_tokens=30))[0]
for each in samples.outputs:
    print(f"{each.index}:{each.text!r}")
print(f"copy-on-write copied {llm.engine.stats().num_copies} blocks\n")

best = llm.generate(prompt, SamplingParams(n=1, best_of=4, temperature=0.9, seed=5, max_tokens=30))[0].outputs[0]
print(f"the likeliest of four (log-probability {best.cumulative_logprob:.1f}):{best.text!r}\n")

beams = llm.generate(prompt, SamplingParams(n=2, beam_width=4, max_tokens=30))[0]
for each in beams.outputs:
    print(f"beam {each.cumulative_logprob:.1f}:{each.text!r}")
llm.close()
