"""The engine's loop by hand: requests join while others run, one is withdrawn, and the memory can be watched.

Run: python examples/by_hand_loop.py
"""

from octavo import EngineConfig, LLMEngine, SamplingParams

engine = LLMEngine(EngineConfig(num_blocks=64, max_num_seqs=8, policy="priority"))

first = engine.add_request("Once upon a time", SamplingParams(max_tokens=40, seed=1))
tedious = engine.add_request("The king counted his gold:", SamplingParams(max_tokens=400, seed=2))
texts = {}
step = 0

while engine.has_unfinished():
    for output in engine.step():
        if output.finished:
            texts[output.request_id] = output.text
    step += 1
    if step == 5:  # joins the batch that is under way, ahead of those that wait
        engine.add_request("Help! cried the fox,", SamplingParams(max_tokens=20, seed=3), request_id="fox", priority=-1)
    if step == 30:
        withdrawn = engine.abort_request(tedious)
        texts[tedious] = withdrawn.text
    if step % 10 == 0:
        memory = engine.memory_snapshot()
        print(
            f"step {step}: {memory.num_used} blocks held, {memory.num_cached} cached, {memory.utilisation:.0%} filled"
        )

for name, text in texts.items():
    print(f"\n{name}:{text}")
engine.close()
