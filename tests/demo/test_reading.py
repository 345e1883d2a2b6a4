"""What is judged was never trained on."""

from localgemma_cli.demo.reading import Corpus, normalise, part_of, read_corpus, select


def phrasings(corpus: Corpus) -> set[str]:
    """Everything that is split, normalised."""
    texts = [question for topic in corpus.topics for question in topic.questions]
    texts += [
        text for memory in corpus.memories for text in (*memory.statements, *memory.asks, *memory.values)
    ]
    texts += [text for manner in corpus.manners for text in manner.texts]
    texts += [*corpus.summaries, *corpus.frames, *corpus.off_frames, *corpus.off_nouns]
    return {normalise(text) for text in texts}


def test_the_parts_share_no_phrasing() -> None:
    train, dev, test = (phrasings(select(read_corpus(), part)) for part in ("train", "dev", "test"))
    assert not train & test
    assert not train & dev
    assert not dev & test


def test_the_parts_make_up_the_corpus() -> None:
    corpus = read_corpus()
    parts = [phrasings(select(corpus, part)) for part in ("train", "dev", "test")]
    assert set.union(*parts) == phrasings(corpus)


def test_case_punctuation_and_politeness_do_not_make_a_new_phrasing() -> None:
    same = (
        "How do I stop it?",
        "how do I stop it",
        "Please, how do I stop it?",
        "Hey, how do I stop it, please?",
    )
    assert len({normalise(text) for text in same}) == 1
    assert len({part_of(text) for text in same}) == 1


def test_enough_is_held_out() -> None:
    test = select(read_corpus(), "test")
    assert sum(len(topic.questions) for topic in test.topics if topic.kind != "unknown") >= 100
    assert all(len(manner.texts) >= 5 for manner in test.manners if manner.id != "ignored")
    assert all(memory.asks and memory.statements for memory in test.memories)


def test_every_topic_is_trained_on_with_many_phrasings() -> None:
    for topic in select(read_corpus(), "train").topics:
        assert len(topic.questions) >= 12, topic.id


def test_a_phrasing_belongs_to_one_topic() -> None:
    # `--system` and `/system` differ only by marks that normalising takes away.
    owners: dict[str, set[str]] = {}
    for topic in read_corpus().topics:
        for question in topic.questions:
            owners.setdefault(question.lower(), set()).add(topic.id)
    assert [question for question, ids in owners.items() if len(ids) > 1] == []


def test_every_answer_holds_the_facts_it_is_judged_by() -> None:
    for topic in read_corpus().topics:
        for answer in topic.answers:
            for group in topic.facts:
                assert any(fact.lower() in answer.lower() for fact in group), (topic.id, group)
        assert len(topic.word.split()) == 1
