"""Every key there is, with the recipe of the paper as its value.

The recipe is the final one of "Cramming: Training a Language Model on a Single GPU in
One Day" (Geiping & Goldstein 2022, arXiv 2212.14034): the architecture "crammed-bert"
(section 4.2), the training "bert-o4" (4.3) and the GLUE protocol (section 5). The other
files in this folder start from these values and change a few.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Returns the paper's recipe for one GPU and one day; `data.sources` is yours."""
    config = config_dict.ConfigDict()

    config.seed = 0  # of everything: init, masking, data order after the first pass
    config.platform = "gpu"  # where pretraining may run: "gpu", or "any"
    # Sequences per forward pass; 128 is for 16 GB (A4000); 0 = the most that fit. The
    # batch's ramp begins with one of them.
    config.micro_batch = 128
    # Compiled programs are kept here, for all runs; "" = nowhere. It may be deleted.
    config.compilation_cache = "~/.cache/cramjax"

    config.model = model = config_dict.ConfigDict()
    model.width = 768  # of the residual stream
    model.ffn_width = 3072  # of gate and value together, each half of it
    model.layers = 16
    model.repeats = 1  # times the layers are gone through, with the same weights
    model.heads = 12  # head dim = width / heads
    model.vocab_size = 32768  # tokenizer entries, the 7 special ones included
    model.embedding_width = 0  # of the word embedding, if factorised; 0 = width
    model.max_length = 128  # tokens in a packed block
    model.dtype = "bfloat16"  # of the computation: float32, bfloat16, float16
    # "xla", "cudnn" (compute capability >= 8.0, 16-bit), or "auto", the faster of them
    # as measured before training
    model.attention = "xla"
    model.mixing = "attention"  # or "fourier"
    model.ffn = "gated"  # or "plain", ffn_width wide
    model.ffn_every = 1  # a feed-forward part in every n-th layer only
    model.activation = "gelu"  # exact; or "relu", "silu", "relu_squared"
    # Added to the words: or "sinusoidal", "learned" (max_length of them). In attention:
    # "rotary". Both: "scaled_sinusoidal+rotary" and so on. Or "none".
    model.positions = "scaled_sinusoidal"
    model.token_types = 0  # embeddings for segments A and B, 2 in BERT; 0 = none
    model.norm = "layernorm"  # or "rmsnorm"
    model.norm_eps = 1e-12
    model.norm_placement = "pre"  # or "post"
    model.embedding_norm = True
    model.first_norm = True  # before the first layer's attention ("pre" only)
    model.final_norm = True
    model.qkv_bias = False  # of query, key and value
    model.linear_bias = False  # of every other dense layer
    model.head_transform = False  # dense, activation, norm before the decoder
    model.decoder_bias = False
    model.sparse_prediction = True  # decode the predicted positions only
    model.init = "normal"  # or "small", "megatron", "wang", "deepnorm"
    model.init_std = 0.02  # of dense kernels and embeddings

    config.data = data = config_dict.ConfigDict()
    # Files (.txt, .jsonl, .json with a record a line, .csv, .parquet; all but the last
    # also as .gz, .xz, .bz2, .zst): paths, globs and URLs, which are read as they are
    # downloaded and not kept. "hf://datasets/OWNER/NAME/PATH" is the Hugging Face hub's
    # newest commit (NAME@COMMIT another, NAME@~parquet its Parquet branch); https://
    # needs the package aiohttp, s3:// s3fs, gs:// gcsfs. Or "tfds:NAME", or
    # "embedded:books".
    data.sources = ()
    data.dir = "data"  # where packed corpora are kept, one folder each
    data.split = "train"  # of tfds: sources
    # Of data.max_chars, one for each source, in any unit; () = by their bytes.
    data.shares = ()
    data.max_chars = 0  # of text in all, taken from every file alike; 0 = all there is
    # In all, taken from every file alike, before duplicates and filters; 0 = all.
    data.max_documents = 0
    data.text_field = "text"  # of a record: .jsonl, .json, .csv, .parquet, tfds:
    data.txt_documents = "blank_line"  # what ends a document in .txt; or "line", "file"
    # Records to keep, e.g. ("meta.pile_set_name=Books3|Gutenberg (PG-19)",); () = all.
    data.keep = ()
    data.join_chars = 0  # documents shorter than this are joined with the next
    data.licence = ""  # of the text, a note for the reports
    # Steps of the normaliser, all of them in the recipe (P 4.4); applied in this order.
    data.normalizer = ("quotes", "nfd", "lowercase", "strip_accents", "spaces", "ascii")
    data.tokenizer = ""  # tokenizer.json of another corpus; "" trains one
    # Or "bert_wordpiece" (punctuation marks one by one, control characters dropped, CJK
    # characters one by one; letters are as data.normalizer says), "bpe", "unigram",
    # "sentencepiece_bpe", "sentencepiece_unigram" (punctuation stays with its word),
    # "wordlevel" (frequent words; <unk> for others).
    data.tokenizer_kind = "wordpiece"  # (P 4.4)
    data.tokenizer_chars = 100_000_000  # of the text, to train the tokenizer on
    data.max_tokens_per_char = 0.25  # drop documents above; 0 keeps all (P 4.4)
    data.min_document_chars = 0  # drop shorter documents; 0 = none
    data.max_document_chars = 0  # drop longer documents; 0 = none
    data.cls = False  # <cls> before every document
    data.sep = True  # <sep> behind every document (P 4.4)
    data.drop_duplicates = False  # drop documents equal to an earlier one, stripped
    # Cut out every run of so many bytes that occurred before (75 in P 4.4, after arXiv
    # 2107.06499); the first occurrence stays. 0 = off. Needs the extra "dedup" and,
    # meanwhile, disk for the text.
    data.dedup_bytes = 0
    # Bytes of text searched at once for these: 13 bytes of memory each (7 GB), up to 22
    # if most of it repeats. Longer text is searched in pairs of halves: to find the
    # same takes time with its square, so give what memory there is.
    data.dedup_chunk_bytes = 1 << 29
    # Of the documents, never trained on; of one above 4M characters the pieces count.
    data.held_out_share = 0.005
    # Of the first pass: most "." first; or "fragments" (most <sep>), "unigram" (likely
    # tokens), "unigram_reversed", "decoded_length" (shortest), "random", "stored".
    data.order = "sentence_length"

    config.objective = objective = config_dict.ConfigDict()
    objective.mask_rate = 0.25  # share of positions predicted, the same in every row
    objective.final_mask_rate = 0.0  # reached linearly over the budget; 0 = the same
    objective.mask_share = 0.8  # of these, share that becomes <mask>
    objective.random_share = 0.1  # share that becomes a random token; the rest stays
    # No attention across <sep> in a block; <sep>, which this shows, is not predicted.
    objective.separate_documents = False
    objective.dropout = 0.0  # off in pretraining (P 4.3)

    # Sequences cut from blocks, short ones first; () = whole blocks throughout.
    config.curriculum = curriculum = config_dict.ConfigDict()
    curriculum.lengths = ()  # tokens of a sequence, one per stage
    curriculum.starts = ()  # share of the budget at which each stage begins
    curriculum.unfold = True  # a block becomes several sequences; False = its beginning

    config.optimizer = optimizer = config_dict.ConfigDict()
    # adamw, adam_l2 (decay in the gradient), adafactor, sgd (Nesterov momentum b1),
    # radam, lion, muon (kernels inside the layers; adamw for the rest)
    optimizer.name = "adamw"
    optimizer.learning_rate = 1e-3  # at the peak of the schedule
    optimizer.b1 = 0.9
    optimizer.b2 = 0.98
    optimizer.eps = 1e-12
    optimizer.weight_decay = 0.01  # not on LayerNorm parameters and biases
    optimizer.clip_norm = 0.5  # global norm of the accumulated gradient; 0 = off

    config.schedule = schedule = config_dict.ConfigDict()
    # constant, linear, polynomial, cosine, cosine_restarts, inverse_cosine,
    # inverse_sqrt, ramp, one_cycle, multi_cycle, triangle, dive, trapezoid
    schedule.curve = "triangle"
    schedule.base = 0.25  # share of the peak at the start (triangle, trapezoid)
    schedule.falloff = 0.25  # share of the end, down to 0 (triangle, dive, trapezoid)
    schedule.power = 1.0  # of polynomial
    schedule.cycles = 4  # of cosine_restarts and multi_cycle
    schedule.warmup = 0.0  # share of linear rise from 0 before the curve
    schedule.cooldown = 0.0  # share of linear fall to 0 at the end, whatever the curve
    schedule.updates = 0  # the curve runs over so many updates; 0 = over the budget

    # Averages of the weights, scored beside the weights themselves.
    config.averaging = averaging = config_dict.ConfigDict()
    averaging.ema_decay = 0.0  # per update, e.g. 0.999; 0 = off
    averaging.lawa_last = (
        0  # snapshots in the mean, each as large as the model; 0 = off
    )
    averaging.lawa_every = 100  # updates from one snapshot to the next

    config.batch = batch = config_dict.ConfigDict()
    batch.sequences = 8192  # per update, at the end of the ramp
    batch.ramp_share = 0.6  # share of the budget to get there; 0 = at once, > 1 = never

    # Exactly one of the three is positive; 0 means not set.
    config.budget = budget = config_dict.ConfigDict()
    budget.hours = 24.0  # wall clock: compilation and checkpoints in, validation out
    budget.tokens = 0  # tokens seen
    budget.flops = 0.0  # model FLOPs, forward and backward

    config.checkpoint = checkpoint = config_dict.ConfigDict()
    checkpoint.every_minutes = 10.0
    checkpoint.keep = 2  # newest checkpoints kept

    config.log = log = config_dict.ConfigDict()
    log.every_steps = 100  # micro-steps per line of metrics.jsonl

    config.guard = guard = config_dict.ConfigDict()
    # So many micro-batches in a row without finite gradients: back to the last
    # checkpoint with a lower learning rate, once; the second time the run stops.
    guard.max_bad_steps = 50
    guard.rate_factor = 0.5  # how much lower
    guard.max_loss = 6.0  # the run stops if the loss is above; 0 = no limit
    guard.max_loss_after = 0.125  # share of the budget from which on it is checked

    config.validation = validation = config_dict.ConfigDict()
    validation.every_minutes = 60.0  # outside the budget; 0 = at the end only
    validation.mask_rate = 0.15  # of the held-out blocks, whatever the training rate
    # Held-out blocks scored, at most, evenly spread over all of them; word order is
    # scored on as many pairs, at most 400.
    validation.max_blocks = 2048

    config.glue = glue = config_dict.ConfigDict()
    # The paper's eight; () stops after pretraining. There are also wnli; SuperGLUE's
    # cb, copa, multirc, wic, wsc, boolq and superglue_rte (with AX-b and AX-g); in the
    # package intents, intents10 and acceptability; and own, the task of the own_ keys.
    glue.tasks = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
    # Folder with CoLA/train.tsv, CoLA/dev.tsv, SST-2/ ...; if there is no such folder,
    # TensorFlow Datasets downloads and prepares GLUE, once for all runs.
    glue.data_dir = "glue_data"
    glue.superglue_dir = (
        "superglue_data"  # with CB/train.jsonl, CB/val.jsonl, COPA/ ...
    )
    # GLUE from TFDS, prepared in this folder, whether there is a data_dir or not. "" =
    # data_dir, and if that is not there, TFDS's own folder, ~/tensorflow_datasets.
    glue.tfds_dir = ""
    # Your own task: a folder with train and dev, each .tsv (with a header) or .jsonl.
    glue.own_dir = ""
    glue.own_texts = ("text",)  # columns of one or more texts
    glue.own_label = "label"  # column of the label
    # accuracy, f1 (two labels; of the one that sorts last), macro_f1, matthews; pearson
    # and spearman if the label is a number
    glue.own_metric = "accuracy"
    glue.test_sets = True  # predict GLUE's test sets, where they are, for its server
    # Initializations: also "random", for comparison; "ema" and "lawa" if averaged
    glue.starts = ("pretrained",)
    glue.trials = 5  # each with its own head, dropout and order; the median counts
    # Trained in one program; 0 = all or one, whichever is faster (measured first).
    glue.trials_at_once = 0
    glue.max_length = 128  # tokens of a row, special ones included; longer are cut
    # A single text is "<cls> A <sep> <sep>" (P 5); False = "<cls> A <sep>", as in BERT.
    glue.empty_second = True
    glue.epochs = 5
    glue.batch_size = 16
    # If several, each initialization is scored at its own best one.
    glue.learning_rates = (4e-5,)
    glue.b1 = 0.9
    glue.b2 = 0.98
    glue.eps = 1e-6
    glue.weight_decay = 0.0
    glue.warmup_share = 0.1  # of a task's steps, linear; then cosine to 0
    # The same number in every task; 0 = warmup_share. The authors' implementation takes
    # CoLA's 267 for all.
    glue.warmup_steps = 0
    glue.dropout = 0.1
    glue.head_width = 1024  # of the classification head's hidden layer
    glue.max_train_rows = 0  # cap per task, a random sample; 0 = all rows
    return config
