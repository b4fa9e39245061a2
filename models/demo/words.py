"""The plain English words that the demo model's sentences and word puzzles are made of.

Owns: one fixed tuple of lower-case words. Promises: no duplicates, ASCII letters only, a stable order (the split and
the seeds depend on it). Must not: hold phrasings or answers, which are data.py's.
"""

from __future__ import annotations

_TEXT = """
able about above across act add after again age ago air all alone along also always among amount anchor
angle animal answer apple april area arm around arrive art ask autumn away baby back bag ball banana band
bank barn base basket bath beach bean bear beauty bed bee before begin behind bell below bench best better
big bird black blue boat body bone book border boss bottle bottom bowl box boy branch brave bread break
bridge bright bring broom brother brown brush bucket build burn bus busy butter button cabin cake call calm
camera camp candle canyon cap car card care carpet carry castle cat catch cause cave center chain chair
chalk change cheese cherry chicken child choose church circle city class clean clear climb clock close cloud
coast coat coffee coin cold color come cook cool copper copy corn corner cotton count country course cousin
cover cow craft cream cross crowd cup curtain cut dance dark daughter dawn day dear deep deer desert desk
dinner doctor dog door double down dragon draw dream dress drink drive drop drum dry duck dust eagle ear
early earth east easy eat edge egg eight elbow empty end engine enjoy enter equal evening every eye face
fact fall family famous far farm fast father feather feed feel fence few field fight fill find finger finish
fire first fish five flag flame flat floor flow flower fly fog follow food foot forest forget fork four fox
free fresh friend frog front frost fruit full funny garden gate gentle ghost giant gift girl give glad glass
glove goat gold good grain grape grass gray great green ground group grow guess guest guitar hair half hall
hammer hand happy harbor hard hat have hay head hear heart heavy hello help hen herb hill hold hole home
honest honey hope horse hot hotel hour house huge human hundred hungry hunt hurry ice idea inch insect iron
island ivory jacket jar jelly job join joke journey joy juice jump june jungle just keep kettle key kick
kind king kitchen kite knee knife knot know ladder lake lamb lamp land lantern large last late laugh lawn
leaf learn leather leave left leg lemon lesson letter level library light lime line lion listen little live
log long look loud love low lucky lunch machine magic mail make maple marble march market master match
meadow meal meat melon metal middle mild milk mill mind minute mirror money monkey moon morning moss mother
mountain mouse mouth move much mud music nail name narrow near neck needle nest never new news night nine
noise north nose note number nurse oak oat ocean offer office often oil old olive onion open orange orbit
order other oven owl page paint pair palm paper park part party path peace peach pear pebble pen pencil
penny people pepper piano picture piece pig pillow pilot pine pink pipe pizza place plain plane planet plant
plate play pocket poem point pond pony pool poor porch potato power press pretty price prince pull pump
puppy purple push puzzle queen question quick quiet rabbit race radio rain raise ranch reach read ready red
rest rice rich ride right ring rise river road robin robot rock roof room root rope rose round row rubber
rule run sad saddle safe sail salt sand school sea season seat second secret seed send seven shade shadow
shape share sharp sheep shelf shell shine ship shirt shoe shop shore short shout show silver simple sing
sister six skin sky sleep slow small smart smile smoke snow soap soft soil song soon sound soup south space
spark speak spider spoon spring square stable stage stairs stand star start station steam steel step stick
still stone storm story strange stream street string strong sugar summer sun supper sweet swim table tail
take talk tall tea teach team ten tent thank thick thin thing think thread three ticket tide tiger time tiny
today together tomato tomorrow tooth top touch tower town toy track trade train travel tree trip truck true
trust tunnel turn turtle twelve twenty two uncle under up upon valley velvet very village violet violin
visit voice wait walk wall want warm wash watch water wave way weather week west wheat wheel whisper white
wide wild wind window wing winter wise wish wolf wonder wood wool word work world write yard year yellow yes
yesterday young zebra zero
"""

WORDS: tuple[str, ...] = tuple(_TEXT.split())
