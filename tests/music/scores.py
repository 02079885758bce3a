"""The scores of the pieces in this folder. They are in the public domain: CC0-1.0.

Notes are written pitch:beats, chords "C#4+E4:1.5", a rest "r"; C4 is middle C. A length holds until the next one is given.
"|" stands where a bar ends; `render` checks that it does. Drums are rows of sixteenths: X accented, x normal, o soft.
"""
from dataclasses import dataclass


@dataclass
class Part:
    program: int  # General MIDI, counted from 0; for drums the kit
    notes: str = ""
    drums: tuple = ()  # instead of notes: {drum: row} after {drum: row}; short rows end in silence
    dynamics: tuple = ((0, 100),)  # (beat, MIDI velocity), straight lines between
    pan: int = 64  # 0 left, 127 right
    volume: int = 100
    reverb: int = 40
    gate: float = 0.95  # how much of its length a note sounds
    loose_ms: float = 8.0  # how early or late a note may come
    transpose: int = 0  # semitones
    expression: str = ""  # "swell": every note blooms and fades, as bows and voices do; "pump": ducks on every beat


@dataclass
class Piece:
    file: str
    title: str
    beats_per_bar: int
    tempo: tuple  # (beat, beats per minute), each until the next
    parts: list
    encode: str  # ffmpeg's output options
    tail_s: float = 2.0  # what still sounds after the last bar, faded out
    filters: str = "anull"  # ffmpeg's filters, before the level is set


PIANO, STEEL_GUITAR, OVERDRIVE, DISTORTION, PICKED_BASS, SYNTH_BASS = 0, 25, 29, 30, 34, 38
VIOLIN, VIOLA, CELLO, CHOIR, FLUTE, SAW_LEAD, POLYSYNTH = 40, 41, 42, 52, 73, 81, 90
POWER_KIT, ELECTRONIC_KIT = 16, 24


minuet = Piece(
    "minuet.flac", "Minuet in D minor", beats_per_bar=3, tempo=((0, 132), (21, 124), (22, 112), (23, 96), (24, 84)),
    encode="-ar 48000 -ac 2 -sample_fmt s16 -c:a flac -compression_level 12", tail_s=0.4,
    filters="lowpass=f=12000,pan=stereo|c0=.65*c0+.35*c1|c1=.35*c0+.65*c1",  # both make the FLAC smaller
    parts=[
        Part(PIANO, dynamics=((0, 72), (9, 92), (12, 74), (18, 90), (24, 64)), notes="""
            A4:1.5 D5:.5 E5 F5 | E5 D5 C#5:1 A4 | D5:1.5 F5:.5 G5 A5 | Bb5 A5 G5:2 |
            C5:1.5 E5:.5 F5 G5 | A5 G5 F5:1 C5 | Bb4:.5 D5 G5 F5 E5 C#5 | F4+A4+D5:3 |"""),
        Part(PIANO, dynamics=((0, 58), (9, 68), (12, 56), (18, 68), (24, 52)), gate=0.9, notes="""
            D3:1 F3+A3 F3+A3 | A2 E3+A3 E3+G3 | F3 A3+D4 A3+D4 | G3 Bb3+D4 D4 |
            E3 G3+Bb3 G3+Bb3 | F3 A3 F3 | G3 G2 A2 | D3:.5 A2 D2:2 |"""),
    ])


bowed = {"gate": 1.0, "loose_ms": 15, "reverb": 70, "expression": "swell"}
adagio = Piece(
    "adagio.ogg", "Adagio in G minor for string quartet", beats_per_bar=4, tempo=((0, 58), (18, 54), (19, 48), (20, 52)),
    encode="-ar 44100 -ac 2 -c:a libvorbis -q:a 2", tail_s=1.0,
    parts=[
        Part(VIOLIN, pan=36, dynamics=((0, 70), (8, 96), (14, 84), (20, 60)), **bowed, notes="""
            D5:1.5 Eb5:.5 D5:1 A4 | Bb4 G5 F5:1.5 Eb5:.5 | Eb5:1 D5:.5 C5 A4 C5 Eb5:1 |
            D5:1.5 C5:.5 D5:1 Bb4 | C5 Bb4:.5 A4 G4:1 F#4 | G4:4 |"""),
        Part(VIOLIN, pan=54, dynamics=((0, 60), (8, 82), (14, 72), (20, 54)), **bowed, notes="""
            Bb4:2 A4:1 F4 | G4:2 Bb4 | Bb4:1 G4 F4:2 | F4 G4 | Eb4 D4 | D4:4 |"""),
        Part(VIOLA, pan=74, dynamics=((0, 60), (8, 80), (14, 72), (20, 58)), **bowed, notes="""
            D4:4 | Bb3 | G3:2 C4:1 A3 | Bb3:4 | G3:2 A3 | A3:1 B3:3 |"""),
        Part(CELLO, pan=92, dynamics=((0, 66), (8, 88), (14, 76), (20, 58)), **bowed, notes="""
            G2:2 F2 | Eb2 D2 | C2 F2 | Bb2 Eb2 | C2 D2 | G2:4 |"""),
    ])


D, G, A = "D3:.5 A3 F#4", "G2:.5 D3 B3", "A2:.5 E3 C#4"
jig = Piece(
    "jig.wav", "Jig in D for flute and guitar", beats_per_bar=3, tempo=((0, 152),),
    encode="-ar 16000 -ac 1 -c:a pcm_s16le", tail_s=1.0,
    parts=[
        Part(FLUTE, gate=0.9, volume=127, reverb=60, dynamics=((0, 104), (12, 112), (16, 120), (24, 104)), notes="""
            A4:.5 D5 E5 F#5:1 E5:.5 | D5:1 B4:.5 A4:1 F#4:.5 | G4 A4 B4 D5 B4 A4 | E5:2.5 r:.5 |
            A4 D5 E5 F#5:1 A5:.5 | G5:1 F#5:.5 E5:1 C5:.5 | B4 D5 B4 A4 C#5 E5 | D5:2.5 r:.5 |"""),
        Part(STEEL_GUITAR, gate=1.6, loose_ms=10, volume=70, dynamics=((0, 90),), notes=f"""
            D3:.5 A3 D4 F#4 D4 A3 | {G} {D} | G2 D3 G3 B3 G3 D3 | A2 E3 A3 C#4 A3 E3 |
            D3 A3 D4 F#4 D4 A3 | C3 G3 C4 E4 C4 G3 | {G} {A} | D3+A3+D4+F#4:2.5 r:.5 |"""),
    ])


def power(roots: str) -> str:
    """Each root with the fifth and the octave above it, as rock guitars play it."""
    fifths = {"C": "G", "D": "A", "E": "B", "G": "D", "A": "E", "Bb": "F"}

    def chord(token: str) -> str:
        root, colon, beats = token.partition(":")
        if root in ("|", "r"):
            return token
        name, octave = root[:-1], int(root[-1])
        fifth = fifths[name] + str(octave + (name in ("G", "A", "Bb")))
        return f"{root}+{fifth}+{name}{octave + 1}{colon}{beats}"

    return " ".join(map(chord, roots.split()))


riff = " E2:.5 E2 E2 G2:1 E2:.5 A2:1 | E2:.5 E2 E2 Bb2 A2 G2 E2:1 | "
chorus = " C3:1.5 C3:.5 C3:1 C3 | D3:1.5 D3:.5 D3:1 D3 | E3:1.5 E3:.5 E3:1 E3 | G2:1.5 G2:.5 D3:1 D3 | "
last = " E2:3 r:1 | "
rhythm_guitar = power(riff * 3 + chorus + riff * 2 + last)
pickup = {"kick":       ".... .... .... .... .... .... .... x.x.",
          "snare":      ".... .... .... .... .... .... x.xx X.XX",
          "closed hat": "x... x... x... x... x... x... .... ...."}
verse = {"kick":        "X... ..x. X.x. .... X... ..x. X.x. ..x.",
         "snare":       ".... X... .... X... .... X... .... X...",
         "closed hat":  "x.o. x.o. x.o. x.o. x.o. x.o. x.o. x.o."}
ride = {"kick":         "X... ..x. ..X. .... X... ..x. ..X. x...",
        "snare":        ".... X... .... X... .... X... .... X..x",
        "ride":         "x.x. X.x. x.x. X.x. x.x. X.x. x.x. X.x."}
crash = {"crash": "X"}
last_hit = {"kick": "X... .... .... ....", "crash": "X"}
rock = Piece(
    "rock.mp3", "Riff in E", beats_per_bar=4, tempo=((0, 144),), encode="-ar 44100 -ac 2 -c:a libmp3lame -b:a 112k", tail_s=1.2,
    filters="acompressor=threshold=-18dB:ratio=3:attack=10:release=120",
    parts=[
        Part(DISTORTION, rhythm_guitar, pan=8, gate=0.85, reverb=20),
        Part(DISTORTION, rhythm_guitar, pan=120, gate=0.85, reverb=20, loose_ms=12),
        Part(OVERDRIVE, pan=70, volume=92, reverb=60, notes=6 * "r:4 | " + """
            E5:1.5 G5:.5 E5:1 D5 | F#5:1.5 A5:.5 F#5:1 E5 | G5:1.5 F#5:.5 E5:1 B4 | D5:2 B4:1 D5 |
            E5:4 | r:4 | E5:.5 G5 A5 Bb5 A5 G5 E5:1 | r:4 | E5:3 r:1 |"""),
        Part(PICKED_BASS, 2 * "r:4 | " + riff * 2 + chorus + riff * 2 + last, volume=110, gate=0.9, reverb=0, transpose=-12),
        Part(POWER_KIT, drums=(pickup, verse | crash, verse, ride | crash, ride, verse | crash, verse, last_hit),
             volume=120, reverb=25, loose_ms=5),
    ])


# An A minor groove: the bass leaves room for every kick, the stabs sit between the beats, the pad ducks under the kick.
acid = " r:.25 A1 A1 A2 r A1 C2 A1 r A1 A1 G2 r A1 E2 G1 | "
pulse = {"kick":       "X... X... X... X... X... X... X... X...",
         "closed hat": "o.x. o.x. o.x. o.x. o.x. o.x. o.x. o.xo"}
groove = pulse | {"clap": ".... x... .... x... .... x... .... x...",
                  "open hat": "..x. ..x. ..x. ..x. ..x. ..x. ..x. ..x."}
arpeggio = " A4:.25 C5 E5 A5 E5 C5 " * 5 + "B4 G5 | "
techno = Piece(
    "techno.m4a", "Four on the floor", beats_per_bar=4, tempo=((0, 128),), encode="-ar 44100 -ac 2 -c:a aac -b:a 96k", tail_s=0.0,
    filters="acompressor=threshold=-16dB:ratio=3:attack=5:release=80",
    parts=[
        Part(ELECTRONIC_KIT, drums=(pulse, groove, groove, groove, groove), volume=127, reverb=5, loose_ms=0),
        Part(SYNTH_BASS, 2 * "r:4 | " + acid * 8, volume=110, gate=0.7, reverb=0, loose_ms=0),
        Part(SAW_LEAD, volume=84, gate=0.9, reverb=60, loose_ms=0, notes=4 * "r:4 | " + 3 * """
            r:.5 A3+C4+E4:.25 r:.75 A3+C4+E4:.25 r:.5 A3+C4+E4:.25 r:.5 A3+C4+E4:.25 r:.75 |
            r:.5 F3+A3+C4:.25 r:.75 F3+A3+C4:.25 r:.5 G3+B3+D4:.25 r:.5 G3+B3+D4:.25 r:.75 |"""),
        Part(SAW_LEAD, 6 * "r:4 | " + 2 * arpeggio, volume=64, gate=0.6, pan=90, reverb=80, loose_ms=0, dynamics=((24, 60), (40, 110))),
        Part(POLYSYNTH, 2 * "r:4 | " + 4 * "A3+E4+A4:4 | F3+C4+A4:2 G3+D4+B4 | ", volume=76, gate=1.0, reverb=60, expression="pump"),
    ])


sung = {"gate": 1.0, "loose_ms": 18, "reverb": 90, "expression": "swell"}
chorale = Piece(
    "chorale.m4a", "Chorale on the Old Hundredth", beats_per_bar=4, tempo=((0, 92), (16, 82), (18, 72)),
    encode="-ar 22050 -ac 1 -sample_fmt s16p -c:a alac", tail_s=0.5,
    parts=[
        # The first and the last line of the tune in the Genevan Psalter of 1551.
        Part(CHOIR, dynamics=((0, 84), (10, 104), (19, 80)), **sung, notes="""
            G4:1 G4 F#4 E4 | D4 G4 A4 B4 | r:.25 D5:.75 B4:1 G4 A4 | C5 B4 A4:2 | G4:3 r:1 |"""),
        Part(CHOIR, **sung, dynamics=((0, 72), (10, 88), (19, 70)), notes="""
            D4:1 D4 D4 B3 | B3 B3 D4 D4 | r:.25 G4:.75 G4:1 E4 D4 | D4 D4 D4 C4 | B3:3 r:1 |"""),
        Part(CHOIR, **sung, dynamics=((0, 72), (10, 88), (19, 70)), notes="""
            B3:1 B3 A3 G3 | F#3 G3 F#3 G3 | r:.25 B3:.75 B3:1 C4 A3 | A3 B3 F#3:2 | G3:3 r:1 |"""),
        Part(CHOIR, **sung, dynamics=((0, 80), (10, 96), (19, 78)), notes="""
            G3:1 G3 D3 E3 | B2 E3 D3 G2 | r:.25 G3:.75 E3:1 E3 F#3 | F#3 G3 D3:2 | G2:3 r:1 |"""),
    ])

PIECES = [minuet, adagio, jig, rock, techno, chorale]
