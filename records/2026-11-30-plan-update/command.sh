# On a CPU with the extra cuda12 (jax 0.12.0): nothing ran on a card.
for card in a4000 rtx2080ti a6000 h200 h100; do
  paper=$card; [ $card = h100 ] && paper=h200
  size=512; [ $card = a4000 ] && size=128; [ $card = rtx2080ti ] && size=96
  python scripts/plan.py --config=$paper --card=$card --micro_batches=$size --json=$card-paper.json
  python scripts/plan.py --config=best:$card --card=$card --micro_batches=$size --json=$card-best.json
done
