# On a CPU with the extra cuda12 (jax 0.11.2): nothing ran on a card.
for card in rtx2080ti a4000 a6000 h200; do
  python scripts/plan.py --config=configs/$card.py --card=$card --json=$card.json
done
python scripts/plan.py --config=configs/h200.py --card=h100 --json=h100.json
