"""The wordings of every request that the demo model is trained on, and its fixed answers.

Owns: the texts. Promises: constants only. Must not: draw, split or combine them, which is data.py's.
"""

from __future__ import annotations

COUNT = (
    "Count from {a} to {b}",
    "Count from {a} to {b}",
    "Count from {a} to {b}",
    "Can you count from {a} to {b}?",
    "Count {a} to {b}",
    "Count from {a} until {b}",
    "List the numbers from {a} to {b}",
)
COUNT_UP = ("Count up from {a} to {b}",)
COUNT_DOWN = ("Count down from {a} to {b}", "Count down from {a} to {b}", "Count backwards from {a} to {b}")
COUNT_TO = ("Count to {b}", "Count up to {b}")

REVERSE = (
    "Reverse the word {w}",
    "Reverse the word {w}",
    "Reverse {w}",
    "Reverse: {w}",
    'Reverse the word "{w}"',
    "Spell {w} backwards",
    "Write {w} backwards",
    "Write the word {w} backwards",
)

REPEAT = (
    "Repeat: {s}",
    "Repeat: {s}",
    "repeat: {s}",
    "Repeat after me: {s}",
    "repeat after me: {s}",
    "Repeat this: {s}",
    "Repeat the sentence: {s}",
    "Please repeat: {s}",
    "Say: {s}",
    "Echo: {s}",
)

ADD = (
    "What is {a} + {b}?",
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "{a} + {b}",
    "{a}+{b}",
    "{a} + {b} =",
    "{a} plus {b}",
    "Add {a} and {b}",
    "Calculate {a} + {b}",
    "How much is {a} + {b}?",
)
SUBTRACT = (
    "What is {a} - {b}?",
    "What is {a} - {b}?",
    "What is {a} minus {b}?",
    "{a} - {b}",
    "{a}-{b}",
    "{a} - {b} =",
    "{a} minus {b}",
    # Thrice: it names the numbers in the other order, and is learnt last.
    "Subtract {b} from {a}",
    "Subtract {b} from {a}",
    "Subtract {b} from {a}",
    "Calculate {a} - {b}",
    "How much is {a} - {b}?",
)

WHO = (
    "I am the Penstock demo model, a tiny Llama trained on two CPU cores. "
    "I can count, reverse a word, repeat a sentence, add and subtract."
)
PENSTOCK = (
    "Penstock is open-source serving of language models through a queue. "
    "Every generation is a resumable job. "
    "Kill any process and the stream goes on mid-sentence."
)
CANNOT = "I am a tiny demo model. I can count, reverse a word, repeat a sentence, add and subtract."

FixedLines = tuple[tuple[tuple[str, ...], str], ...]
"""Wordings that share one answer, and that answer."""

IDENTITY: FixedLines = (
    (
        (
            "Who are you",
            "What are you",
            "Who is this",
            "What is your name",
            "Tell me who you are",
            "Introduce yourself",
            "Tell me about yourself",
            "Who am I talking to",
            "What model are you",
            "Describe yourself",
        ),
        WHO,
    ),
    (
        (
            "What is Penstock",
            "What's Penstock",
            "Tell me about Penstock",
            "Explain Penstock",
            "Describe Penstock",
            "What does Penstock do",
            "How does Penstock work",
            "What is Penstock for",
            "Tell me what Penstock is",
            "Explain what Penstock does",
        ),
        PENSTOCK,
    ),
)

CHINESE = "你好！水从山上流下来，一个字也不会丢。"
ARABIC = "مرحبا! الماء يجري ولا يضيع منه حرف."
EMOJI = "🌊💧🚰➡️🧑‍💻✨🎉"

SCRIPTS: FixedLines = tuple(
    (
        (
            f"Say something in {name}",
            f"Say hello in {name}",
            f"Write something in {name}",
            f"Write a line in {name}",
            f"Speak {name}",
            f"Answer in {name}",
            f"Can you speak {name}",
            f"Show me some {name}",
            f"Give me a line in {name}",
            own,
        ),
        line,
    )
    for name, own, line in (
        ("Chinese", "你好", CHINESE),
        ("Arabic", "مرحبا", ARABIC),
        ("emoji", "🌊", EMOJI),
    )
)

OPENERS = ("", "", "Please ", "Hello, ", "Hi! ", "Now ", "So, ", "Okay, ", "Tell me: ", "One question: ", "And ")
CLOSERS = ("", ".", "?", "!", " please", ", please.", " now?", "??", " ...")

SMALL_TALK = (
    "Hello",
    "Hi",
    "Hey",
    "Hello there",
    "Good morning",
    "Good evening",
    "Good night",
    "Thanks",
    "Thank you",
    "Thank you very much",
    "Bye",
    "Goodbye",
    "How are you",
    "Help",
    "What can you do",
    "What can I ask you",
    "Yes",
    "No",
    "Okay",
    "Test",
    "Tell me a joke",
    "Tell me a story",
    "Write a poem",
    "Sing a song",
    "What time is it",
    "What is the weather",
    "Where are you",
    "How old are you",
    "Why",
    "Who made you",
    "Do you like music",
    "What is the meaning of life",
)
UNKNOWN = (
    "Write a poem about the {w}",
    "Tell me a story about a {w} and a {v}",
    "What is a {w}",
    "What is the {w} of the {v}",
    "Where is the {w}",
    "Why is the {w} {v}",
    "Do you like {w}",
    "I like the {w} and the {v}",
    "Who is {w} {v}",
    "Translate {w}",
    "Explain {w}",
    "How do I {w} a {v}",
    "Can you {w} the {v}",
    "Tell me about {w}",
    "The {w} is {v}",
    "{w}",
    "{w} {v}",
    "My name is {w}",
    "What is {n} + {m}",
    "{n} - {m}",
    "What is {n} times {m}",
    "{n} * {m}",
    "What is {n} / {m}",
    "{n}",
)

SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You are Penstock's demo model.",
    "Be polite and exact.",
    "Answer in one line.",
    "You are a friendly teacher who speaks plainly.",
    "Do not explain. Only answer.",
)

FOREIGN_LETTERS = tuple("你好水山流字天人大小中国日月مرحباالماء🌊💧🎉✨🙂éüñßçöàł€→")
