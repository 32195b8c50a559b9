# On a CPU with the extra cuda12 (jax 0.12.0): nothing ran on a card.
for card in rtx2080ti a4000 a6000 h200 h100; do
  paper=$card; [ $card = h100 ] && paper=h200
  size=512; [ $card = a4000 ] && size=128; [ $card = rtx2080ti ] && size=96
  python scripts/plan.py --config=$paper --card=$card --micro_batches=$size --json=$card-paper.json
  python scripts/plan.py --config=best:$card --card=$card --micro_batches=$size --json=$card-best.json
done
# One change each, on the H200:
for change in model.positions=rotary optimizer.name=muon objective.mask_rate=0.4; do
  python scripts/plan.py --config=h200 --card=h200 --micro_batches=512 --config.$change
done
python scripts/plan.py --config=h200 --card=h200 --micro_batches=512 --config.objective.mask_rate=0.4 \
    --config.model.sparse_last_layer=True
