"""The word lists that the tiny model's training text is made of: subject and value, one table per relation."""

from __future__ import annotations


def table(text: str) -> dict[str, str]:
    """`subject = value` entries, separated by semicolons or line ends."""
    entries = (entry.split("=") for entry in text.replace("\n", ";").split(";") if entry.strip())
    return {subject.strip(): value.strip() for subject, value in entries}


def listed(text: str) -> tuple[str, ...]:
    """Entries separated by commas."""
    return tuple(" ".join(entry.split()) for entry in text.split(","))


SOUNDS = table("""
a cow = moo; a dog = woof; a cat = meow; a duck = quack; a sheep = baa; a pig = oink; a horse = neigh; a lion = roar
a frog = ribbit; a bee = buzz; a rooster = cock-a-doodle-doo; a chick = cheep; an owl = hoot; a crow = caw
a snake = hiss; a mouse = squeak; a donkey = hee-haw; a goose = honk; a bird = tweet; a turkey = gobble
a wolf = awoo; a hen = cluck; a goat = meh
""")

BABIES = table("""
a cow = a calf; a dog = a puppy; a cat = a kitten; a duck = a duckling; a sheep = a lamb; a pig = a piglet
a horse = a foal; a lion = a cub; a frog = a tadpole; a goat = a kid; a goose = a gosling; a hen = a chick
a bear = a cub; a deer = a fawn; a kangaroo = a joey; a swan = a cygnet; an owl = an owlet; an eagle = an eaglet
a tiger = a cub; a wolf = a pup; a seal = a pup; a whale = a calf; an elephant = a calf; a giraffe = a calf
a donkey = a foal; a butterfly = a caterpillar; a person = a baby
""")

HOMES = table("""
a bee = in a hive; a bird = in a nest; a spider = in a web; a fox = in a den; a rabbit = in a burrow
a horse = in a stable; a cow = in a barn; a pig = in a sty; a dog = in a kennel; a fish = in the water
a camel = in the desert; a penguin = in the cold south; a bear = in the forest; a whale = in the sea
a frog = in a pond; a mole = in a tunnel; an ant = in an anthill; a monkey = in the jungle; a lion = in the grassland
a person = in a house; a shark = in the sea; a crab = on the beach; a deer = in the forest; a duck = on a lake
an owl = in a tree; a hen = in a henhouse; a sheep = in the field; a squirrel = in a tree
""")

LEGS = table("""
a cow = four legs; a dog = four legs; a cat = four legs; a horse = four legs; a lion = four legs; a frog = four legs
a mouse = four legs; an elephant = four legs; a spider = eight legs; an ant = six legs; a bee = six legs
a bird = two legs; a duck = two legs; a hen = two legs; a snake = no legs; a fish = no legs; a person = two legs
a crab = ten legs; a butterfly = six legs; a sheep = four legs; a pig = four legs; an owl = two legs
a fly = six legs; a penguin = two legs; a whale = no legs; a goat = four legs; a rabbit = four legs
""")

ANIMAL_KINDS = table("""
a cow = a mammal; a dog = a mammal; a cat = a mammal; a horse = a mammal; a lion = a mammal; a mouse = a mammal
an elephant = a mammal; a whale = a mammal; a bear = a mammal; a bat = a mammal; a duck = a bird; a hen = a bird
an owl = a bird; an eagle = a bird; a penguin = a bird; a swan = a bird; a goose = a bird; a shark = a fish
a salmon = a fish; a trout = a fish; an ant = an insect; a bee = an insect; a fly = an insect
a butterfly = an insect; a beetle = an insect; a snake = a reptile; a crocodile = a reptile; a turtle = a reptile
a frog = an amphibian; a toad = an amphibian; a sheep = a mammal; a pig = a mammal; a fox = a mammal
""")

FLIERS = table("""
a bird = yes; an owl = yes; an eagle = yes; a bee = yes; a fly = yes; a butterfly = yes; a bat = yes; a crow = yes
a swan = yes; a plane = yes; a cow = no; a dog = no; a cat = no; a horse = no; a fish = no; a snake = no; a pig = no
an elephant = no; a penguin = no; a mouse = no; a car = no; a stone = no; a tree = no; a house = no
""")

COLOURS = table("""
grass = green; the sky = blue; the sun = yellow; snow = white; coal = black; a banana = yellow; a lemon = yellow
a strawberry = red; a tomato = red; a cherry = red; a carrot = orange; a pumpkin = orange; a leaf = green
a frog = green; milk = white; chocolate = brown; the night = black; blood = red; the sea = blue
a fire truck = red; a cucumber = green; a lime = green; a plum = purple; an eggplant = purple; a violet = purple
a flamingo = pink; an elephant = grey; a mouse = grey; a cloud = white; a swan = white; a polar bear = white
a crow = black; a chick = yellow; corn = yellow; a brick = red; a ruby = red; an emerald = green; a sapphire = blue
gold = yellow; silver = grey; ash = grey; wood = brown; a brown bear = brown; bread = brown; honey = golden
paper = white; a sunflower = yellow; a pea = green; broccoli = green; a blueberry = blue; a raspberry = red
an orange = orange; salt = white; rice = white; coffee = brown; spinach = green; a tyre = black; a pig = pink
a fox = orange; ink = blue; a stop sign = red; sand = yellow; an egg = white; butter = yellow; a pine tree = green
""")

OPPOSITES = table("""
hot = cold; big = small; up = down; left = right; day = night; open = closed; fast = slow; happy = sad; long = short
old = new; good = bad; hard = soft; light = dark; full = empty; wet = dry; loud = quiet; clean = dirty; rich = poor
strong = weak; early = late; high = low; in = out; on = off; yes = no; black = white; near = far; first = last
front = back; top = bottom; inside = outside; start = end; win = lose; push = pull; give = take; buy = sell
laugh = cry; love = hate; true = false; thick = thin; wide = narrow; deep = shallow; smooth = rough; sharp = blunt
sweet = sour; brave = afraid; asleep = awake; alive = dead; summer = winter; north = south; east = west; boy = girl
man = woman; king = queen; brother = sister; mother = father; more = less; always = never; before = after
above = below; over = under; come = go; remember = forget; arrive = leave; safe = dangerous; easy = difficult
cheap = expensive; simple = complex; public = private; online = offline; input = output; upload = download
friend = enemy; question = answer; problem = solution; war = peace; noise = silence; hello = goodbye; plus = minus
""")

CAPITALS = table("""
France = Paris; Germany = Berlin; Italy = Rome; Spain = Madrid; Portugal = Lisbon; the United Kingdom = London
Ireland = Dublin; Norway = Oslo; Sweden = Stockholm; Finland = Helsinki; Denmark = Copenhagen; Poland = Warsaw
Austria = Vienna; Greece = Athens; Turkey = Ankara; Russia = Moscow; China = Beijing; Japan = Tokyo
India = New Delhi; Egypt = Cairo; Kenya = Nairobi; Canada = Ottawa; Mexico = Mexico City; Brazil = Brasilia
Argentina = Buenos Aires; Chile = Santiago; Peru = Lima; Cuba = Havana; Australia = Canberra
New Zealand = Wellington; the United States = Washington; South Korea = Seoul; Vietnam = Hanoi
Thailand = Bangkok; Nepal = Kathmandu; Iran = Tehran; Iraq = Baghdad; Hungary = Budapest
the Czech Republic = Prague; Belgium = Brussels; the Netherlands = Amsterdam; Switzerland = Bern
Iceland = Reykjavik; Ukraine = Kyiv; Romania = Bucharest; Bulgaria = Sofia; Morocco = Rabat; Ghana = Accra
Colombia = Bogota; the Philippines = Manila; Croatia = Zagreb; Serbia = Belgrade; Latvia = Riga; Estonia = Tallinn
""")

CATEGORIES = table("""
an apple = a fruit; a banana = a fruit; a pear = a fruit; a cherry = a fruit; a lemon = a fruit; an orange = a fruit
a carrot = a vegetable; a potato = a vegetable; an onion = a vegetable; a cabbage = a vegetable; a pea = a vegetable
a car = a vehicle; a bus = a vehicle; a train = a vehicle; a truck = a vehicle; a bicycle = a vehicle
a shirt = a piece of clothing; a coat = a piece of clothing; a hat = a piece of clothing
a sock = a piece of clothing; a dress = a piece of clothing
a chair = a piece of furniture; a table = a piece of furniture; a bed = a piece of furniture
a sofa = a piece of furniture; a hammer = a tool; a saw = a tool; a screwdriver = a tool; a drill = a tool
a piano = an instrument; a guitar = an instrument; a violin = an instrument; a drum = an instrument
a flute = an instrument; a rose = a flower; a tulip = a flower; a daisy = a flower; an oak = a tree; a pine = a tree
red = a colour; blue = a colour; green = a colour; Monday = a day; Friday = a day; May = a month; July = a month
a dog = an animal; a cat = an animal; a cow = an animal; a horse = an animal; a lion = an animal; a rabbit = an animal
""")

USES = table("""
a pen = to write; a pair of scissors = to cut; a cup = to drink; a bed = to sleep; a spoon = to eat soup
an umbrella = to stay dry; a clock = to tell the time; a key = to open a door; a broom = to sweep the floor
a hammer = to hit nails; soap = to wash; a towel = to get dry; a lamp = to make light; a book = to read
a chair = to sit; a ball = to play; a telephone = to call people; a camera = to take pictures; a map = to find the way
a ladder = to climb up; an oven = to bake; a fridge = to keep food cold; a boat = to cross water
a bag = to carry things
a brush = to paint; a knife = to cut bread; a pillow = to rest the head; a bell = to make a sound; a coat = to stay warm
a keyboard = to type; a screen = to show pictures; a microphone = to record sound; a battery = to store energy
a thermometer = to measure heat; a ruler = to measure length; a bridge = to cross a river; a car = to travel
""")

JOBS = table("""
a baker = bakes bread; a teacher = teaches children; a doctor = helps sick people; a farmer = grows food
a pilot = flies planes; a firefighter = puts out fires; a cook = cooks meals; a painter = paints pictures
a singer = sings songs; a dentist = takes care of teeth; a fisher = catches fish; a writer = writes books
a builder = builds houses; a gardener = takes care of plants; a tailor = makes clothes; a driver = drives a car
a scientist = studies the world; a programmer = writes programs; a musician = plays music; a sailor = sails ships
a dancer = dances; a judge = decides in court; a vet = helps sick animals; a librarian = takes care of books
a miner = digs for coal; an actor = acts in plays; a shepherd = takes care of sheep; a photographer = takes photos
""")

PLURALS = table("""
mouse = mice; child = children; foot = feet; tooth = teeth; man = men; woman = women; goose = geese; sheep = sheep
fish = fish; leaf = leaves; knife = knives; wolf = wolves; baby = babies; city = cities; berry = berries; box = boxes
bus = buses; fox = foxes; dish = dishes; cat = cats; dog = dogs; house = houses; tree = trees; book = books; car = cars
apple = apples; chair = chairs; table = tables; bird = birds; cow = cows; star = stars; boat = boats; story = stories
key = keys; day = days; lamp = lamps; egg = eggs; person = people; ox = oxen; cup = cups; door = doors; robot = robots
""")

PASTS = table("""
go = went; eat = ate; see = saw; run = ran; swim = swam; sing = sang; give = gave; take = took; come = came; make = made
find = found; say = said; think = thought; buy = bought; bring = brought; teach = taught; write = wrote; read = read
sleep = slept; fly = flew; drink = drank; sit = sat; stand = stood; know = knew; grow = grew; play = played
walk = walked; jump = jumped; look = looked; like = liked; live = lived; help = helped; open = opened; cook = cooked
break = broke; speak = spoke; win = won; lose = lost; build = built; send = sent; tell = told; is = was; are = were
""")

SIZES = listed("an ant, a bee, a mouse, a rat, a rabbit, a cat, a goat, a cow, a rhino, an elephant, a whale")
"""From small to big."""

SHAPES = table("""
a triangle = three sides; a square = four sides; a rectangle = four sides; a pentagon = five sides
a hexagon = six sides; an octagon = eight sides; a circle = no sides
""")

LISTS = table("""
fruits = apple, banana and cherry; animals = cat, dog and horse; colours = red, green and blue
vegetables = carrot, potato and onion; days = Monday, Tuesday and Wednesday; months = January, February and March
countries = France, Japan and Brazil; cities = Paris, Tokyo and London; birds = owl, duck and eagle
fish = shark, salmon and trout; insects = ant, bee and fly; tools = hammer, saw and drill
shapes = circle, square and triangle; seasons = spring, summer and autumn; drinks = water, milk and tea
flowers = rose, tulip and daisy; numbers = one, two and three; instruments = piano, guitar and drum
""")

DAYS = listed("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
MONTHS = listed(
    "January, February, March, April, May, June, July, August, September, October, November, December",
)
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
SEASONS = listed("spring, summer, autumn, winter")
ORDINALS = listed("first, second, third, fourth, fifth, sixth, seventh, eighth, ninth, tenth, eleventh, twelfth")
NUMBERS = listed("""zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen,
fourteen, fifteen, sixteen, seventeen, eighteen, nineteen, twenty""")

SPELLED = listed("""cat, dog, cow, pig, hen, fox, bee, ant, owl, sun, moon, star, sky, sea, tree, leaf, rose, book, pen,
cup, bed, door, key, lamp, ball, boat, car, bus, train, house, milk, bread, apple, pear, lemon, egg, fish, bird, duck,
frog, lion, mouse, horse, sheep, red, blue, green, black, white, one, two, three, big, small, hot, cold, happy, robot,
chip, model, board, light, water, table, chair, music, river, snow, rain, wind""")

NAMES = listed("""Max, Mia, Tom, Anna, Ben, Lily, Leo, Emma, Sam, Lucy, Tim, Nora, Jack, Ella, Finn, Rosa, Paul, Ida,
Oscar, Maya, Hugo, Clara, Noah, Zoe, Ravi, Lena, Omar, Sara, Ken, Yuki, Ali, Nina,
Pedro, Eva, Otto, Ruby, Felix, Greta""")

CITIES = listed("Paris, London, Rome, Tokyo, Berlin, Madrid, Oslo, Cairo, Lima, Vienna, Prague, Dublin, Athens, Lisbon")
ROOMS = listed("kitchen, bedroom, bathroom, garden, garage, office, hall")
LIKES = listed(
    "apples, music, books, trains, cats, dogs, stars, flowers, stories, robots, tea, snow, bread, birds, games"
)
FAVOURITES = listed("red, blue, green, yellow, orange, purple, pink, black, white, brown")
NONSENSE = listed("""ba, bo, bi, da, do, di, fa, fo, ga, go, ka, ko, ki, la, lo, li, ma, mo, mi, na,
no, ni, pa, po, ra, ro, ri, sa, so, ta, to, ti, va, vo, za, zo""")
"""Syllables of made-up names and words, so that copying is learned and not a list of names."""

UNKNOWN = listed("""the stock market, quantum physics, the meaning of life, the price of gold, the president, my lawyer,
the football game, the news of today, philosophy, chemistry, the war of the roses, opera, my neighbour, the internet,
medicine, the speed of sound, black holes, dinosaurs, volcanoes, poetry, the economy, my homework, the Middle Ages,
car engines, the human brain, bank accounts, tax law, chess openings, the theatre, the weather tomorrow""")

# An answer, then the questions that lead to it.
FACTS: tuple[tuple[str, ...], ...] = (
    ("A week has seven days.", "How many days are in a week?", "How many days does a week have?",
     "How long is a week?"),
    ("A year has twelve months.", "How many months are in a year?", "How many months does a year have?"),
    ("A year has 365 days.", "How many days are in a year?", "How many days does a year have?", "How long is a year?"),
    ("A day has 24 hours.", "How many hours are in a day?", "How many hours does a day have?", "How long is a day?"),
    ("An hour has 60 minutes.", "How many minutes are in an hour?", "How many minutes does an hour have?"),
    ("A minute has 60 seconds.", "How many seconds are in a minute?", "How many seconds does a minute have?"),
    ("A year has four seasons.", "How many seasons are in a year?", "How many seasons does a year have?"),
    ("The alphabet has 26 letters.", "How many letters are in the alphabet?", "How many letters has the alphabet?"),
    ("A person has ten fingers.", "How many fingers does a person have?", "How many fingers do you see on two hands?"),
    ("A hand has five fingers.", "How many fingers does a hand have?", "How many fingers are on a hand?"),
    ("A car has four wheels.", "How many wheels does a car have?", "How many wheels are on a car?"),
    ("A bicycle has two wheels.", "How many wheels does a bicycle have?", "How many wheels are on a bicycle?"),
    ("Bees make honey.", "What do bees make?", "Which food do bees make?", "Who makes honey?"),
    ("Milk comes from cows.", "Where does milk come from?", "Which animal gives us milk?", "Who gives us milk?"),
    ("Eggs come from hens.", "Where do eggs come from?", "Which animal gives us eggs?", "Who gives us eggs?"),
    ("Wool comes from sheep.", "Where does wool come from?", "Which animal gives us wool?", "Who gives us wool?"),
    ("Bread is made from flour.", "What is bread made from?", "What is bread made of?"),
    ("Paper is made from wood.", "What is paper made from?", "What is paper made of?"),
    ("Ice is frozen water.", "What is ice?", "What is ice made of?", "What do you call frozen water?"),
    ("Water freezes at zero degrees.", "When does water freeze?", "At what temperature does water freeze?"),
    ("Water boils at one hundred degrees.", "When does water boil?", "At what temperature does water boil?"),
    ("The sky is blue because of the light of the sun.", "Why is the sky blue?", "What makes the sky blue?"),
    ("Plants need water and light.", "What do plants need?", "What does a plant need?", "What do flowers need?"),
    ("The sun is a star.", "What is the sun?", "Is the sun a star?", "What kind of thing is the sun?"),
    ("The moon goes around the Earth.", "What does the moon do?", "What goes around the Earth?"),
    ("The Earth goes around the sun.", "What does the Earth do?", "What does the Earth go around?"),
    ("The sun rises in the east.", "Where does the sun rise?", "In which direction does the sun rise?"),
    ("The sun sets in the west.", "Where does the sun set?", "In which direction does the sun set?"),
    ("Rain comes from clouds.", "Where does rain come from?", "What brings rain?"),
    ("The largest animal is the blue whale.", "What is the largest animal?", "Which animal is the largest?"),
    ("The tallest animal is the giraffe.", "What is the tallest animal?", "Which animal is the tallest?"),
    ("We see with our eyes.", "What do we see with?", "With what do we see?", "What are eyes for?"),
    ("We hear with our ears.", "What do we hear with?", "With what do we hear?", "What are ears for?"),
    ("We smell with our nose.", "What do we smell with?", "With what do we smell?", "What is a nose for?"),
    ("Cats like to eat fish.", "What do cats like to eat?", "What does a cat like to eat?"),
    ("Cows eat grass.", "What do cows eat?", "What does a cow eat?"),
    ("Rabbits like to eat carrots.", "What do rabbits like to eat?", "What does a rabbit like to eat?"),
    ("A rainbow has seven colours.", "How many colours does a rainbow have?", "How many colours are in a rainbow?"),
    ("Red and yellow make orange.", "What do red and yellow make?", "Which colour do red and yellow make?"),
    ("Blue and yellow make green.", "What do blue and yellow make?", "Which colour do blue and yellow make?"),
    ("Red and blue make purple.", "What do red and blue make?", "Which colour do red and blue make?"),
)  # fmt: skip

EDGE_FACTS: tuple[tuple[str, ...], ...] = (
    ("A Raspberry Pi is a small computer on one board.", "What is a Raspberry Pi?", "Tell me what a Raspberry Pi is.",
     "Do you know what a Raspberry Pi is?"),
    ("An edge device is a small computer close to where it is used.", "What is an edge device?",
     "Tell me what an edge device is.", "What are edge devices?"),
    ("A model is a file of numbers that makes answers from text.", "What is a model?", "What is a language model?",
     "Tell me what a model is."),
    ("A token is a piece of a word.", "What is a token?", "Tell me what a token is.", "What are tokens?"),
    ("Quantization stores numbers with fewer bits.", "What is quantization?", "What does quantization do?",
     "Tell me what quantization is."),
    ("A quantized model is smaller and faster.", "Why do we quantize a model?", "Why is a model quantized?",
     "What is good about a quantized model?"),
    ("A byte has eight bits.", "How many bits are in a byte?", "How many bits does a byte have?", "What is a byte?"),
    ("An int4 number has four bits.", "How many bits does an int4 number have?", "What is int4?",
     "How many bits are in an int4 number?"),
    ("An int8 number has eight bits.", "How many bits does an int8 number have?", "What is int8?",
     "How many bits are in an int8 number?"),
    ("A bit is a zero or a one.", "What is a bit?", "Tell me what a bit is.", "Which values does a bit have?"),
    ("CPU means central processing unit.", "What does CPU mean?", "What does CPU stand for?", "What is a CPU?"),
    ("GPU means graphics processing unit.", "What does GPU mean?", "What does GPU stand for?", "What is a GPU?"),
    ("RAM means random access memory.", "What does RAM mean?", "What does RAM stand for?", "What is RAM?"),
    ("ONNX is a file format for models.", "What is ONNX?", "Tell me what ONNX is.", "Do you know ONNX?"),
    ("GGUF is a file format for models.", "What is GGUF?", "Tell me what GGUF is.", "Do you know GGUF?"),
    ("Python is a programming language.", "What is Python?", "Tell me what Python is.", "Do you know Python?"),
    ("Linux is an operating system.", "What is Linux?", "Tell me what Linux is.", "Do you know Linux?"),
    ("A sensor measures something, like heat or light.", "What is a sensor?", "What does a sensor do?"),
    ("A robot is a machine that can move and work.", "What is a robot?", "What does a robot do?"),
    ("A computer needs power to work.", "What does a computer need?", "What does a computer need to work?"),
    ("A cache keeps results, so that they are not computed again.", "What is a cache?", "What does a cache do?"),
    ("edgeship makes models small for small devices.", "What is edgeship?", "What does edgeship do?",
     "Tell me what edgeship is.", "Do you know edgeship?"),
    ("Qwen is a family of language models.", "What is Qwen?", "Tell me what Qwen is.", "Do you know Qwen?"),
    ("A phone is a small computer that you can carry.", "What is a phone?", "Tell me what a phone is."),
    ("A recipe says how a model is exported.", "What is a recipe?", "What does a recipe say?"),
)  # fmt: skip

MANNERS: tuple[tuple[str, ...], ...] = (
    ("I am the tiny model of edgeship.", "Who are you?", "What are you?", "Tell me who you are.", "What model are you?",
     "What is your name?"),
    ("edgeship made me from short sentences.", "Who made you?", "Who created you?", "Where do you come from?"),
    ("I can answer short questions and tell stories.", "What can you do?", "How can you help me?", "Can you help me?",
     "What do you know?", "Help."),
    ("I am fine, thank you.", "How are you?", "How are you today?", "Are you well?", "How do you do?"),
    ("Hello! How can I help you?", "Hello!", "Hi!", "Hello.", "Good morning!", "Hey!", "Hi there!", "Good day!"),
    ("Goodbye! See you soon.", "Goodbye!", "Bye!", "See you!", "Good night!", "Bye bye!", "See you later!"),
    ("You are welcome.", "Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!", "Thank you for your help."),
    ("No, I am small and I run on your device.", "Are you big?", "Are you a big model?", "Do you need the internet?"),
    ("I run on your own device.", "Where do you run?", "Where are you?", "On what do you run?"),
    ("Yes, I speak a little English.", "Do you speak English?", "Can you speak English?",
     "Which language do you speak?"),
    ("I know no jokes, but I can tell a story.", "Tell me a joke.", "Do you know a joke?", "Can you tell me a joke?",
     "Tell me something funny."),
    ("I cannot sing, but I can tell a story.", "Sing a song.", "Can you sing?", "Sing me a song."),
    ("All right.", "OK.", "Okay.", "Yes.", "No.", "Good.", "I see."),
    ("You can ask me about animals, colours, numbers and words.", "What can I ask you?", "What should I ask?",
     "What do you talk about?", "What are you good at?"),
    ("I am very young.", "How old are you?", "When were you born?", "What is your age?"),
    ("I like short questions.", "What do you like?", "What do you like best?"),
    ("No, I am a computer program.", "Are you a person?", "Are you human?", "Are you alive?", "Are you real?"),
)  # fmt: skip
