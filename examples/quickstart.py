"""Several prompts at once, on the bundled model of fairy tales. Run: python examples/quickstart.py"""

from octavo import LLM, SamplingParams

llm = LLM(num_blocks=256)  # LLM("path/or/hub-id", ...) for another model; keywords are EngineConfig's

prompts = ["Once upon a time there was a king", "The old witch said", "In the deep dark forest"]
outputs = llm.generate(prompts, SamplingParams(max_tokens=60, seed=1), progress=True)

for output in outputs:
    print(f"{output.prompt}{output.text}\n")

stats = llm.engine.stats()
print(f"{stats.num_steps} steps, {stats.peak_blocks} blocks at most, KV utilisation {stats.kv_utilisation:.1%}")
llm.close()
