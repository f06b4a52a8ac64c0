"""Names and words that the replicas share: the real sources' class names, and plain English."""

DIGITS = [str(number) for number in range(10)]

EUROSAT = """AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential
River SeaLake""".split()

# tanganke/gtsrb's, with its misspelt words.
GTSRB = """red and white circle 20 kph speed limit
red and white circle 30 kph speed limit
red and white circle 50 kph speed limit
red and white circle 60 kph speed limit
red and white circle 70 kph speed limit
red and white circle 80 kph speed limit
end / de-restriction of 80 kph speed limit
red and white circle 100 kph speed limit
red and white circle 120 kph speed limit
red and white circle red car and black car no passing
red and white circle red truck and black car no passing
red and white triangle road intersection warning
white and yellow diamond priority road
red and white upside down triangle yield right-of-way
stop
empty red and white circle
red and white circle no truck entry
red circle with white horizonal stripe no entry
red and white triangle with exclamation mark warning
red and white triangle with black left curve approaching warning
red and white triangle with black right curve approaching warning
red and white triangle with black double curve approaching warning
red and white triangle rough / bumpy road warning
red and white triangle car skidding / slipping warning
red and white triangle with merging / narrow lanes warning
red and white triangle with person digging / construction / road work warning
red and white triangle with traffic light approaching warning
red and white triangle with person walking warning
red and white triangle with child and person walking warning
red and white triangle with bicyle warning
red and white triangle with snowflake / ice warning
red and white triangle with deer warning
white circle with gray strike bar no speed limit
blue circle with white right turn arrow mandatory
blue circle with white left turn arrow mandatory
blue circle with white forward arrow mandatory
blue circle with white forward or right turn arrow mandatory
blue circle with white forward or left turn arrow mandatory
blue circle with white keep right arrow mandatory
blue circle with white keep left arrow mandatory
blue circle with white arrow indicating a traffic circle
white circle with gray strike bar indicating no passing for cars has ended
white circle with gray strike bar indicating no passing for trucks has ended""".splitlines()
GTSRB_CORRUPTED = """contrast gaussian_noise impulse_noise jpeg_compression motion_blur pixelate
spatter""".split()

RESISC45 = """airplane airport baseball_diamond basketball_court beach bridge chaparral church
circular_farmland cloud commercial_area dense_residential desert forest freeway golf_course
ground_track_field harbor industrial_area intersection island lake meadow medium_residential
mobile_home_park mountain overpass palace parking_lot railway railway_station rectangular_farmland
river roundabout runway sea_ice ship snowberg sparse_residential stadium storage_tank tennis_court
terrace thermal_power_station wetland""".split()

DTD = """banded blotchy braided bubbly bumpy chequered cobwebbed cracked crosshatched crystalline
dotted fibrous flecked freckled frilly gauzy grid grooved honeycombed interlaced knitted lacelike
lined marbled matted meshed paisley perforated pitted pleated polka-dotted porous potholed scaly
smeared spiralled sprinkled stained stratified striped studded swirly veined waffled woven wrinkled
zigzagged""".split()

# What prompts are made of, and responses: every one of these is a single token after a space.
PLAIN = """about above across after again against along also always another answer around asked away
back because been before began behind believe better between both bring brought build built came
change children city close could country course dark days decided different does done door down
each early end enough even every face family father feel felt few find first follow food found
friend from full game gave general give going good great group grow half hand happen hard have head
hear heart help here high hold home hour house however idea important inside interest just keep kind
knew know large last later learn leave left less letter life light like line listen little live
local long look lost love made make many matter mean meet might mind minute moment money month
morning mother move much must name near need never next night nothing number offer often once only
open order other over paid part party past people perhaps person place plan play point power present
problem public question quite rather reach read ready real really reason remember rest result right
room round said same second seem seen send sense serve several shall should show side simple since
small social some soon sort speak stand start state still stood story street strong such sure table
take talk tell than that their them then there these they thing think third this those though thought
three through time today together told took toward town turn under until usual very voice wait walk
want watch water week well went were what when where which while white whole whose will wish with
within without woman wonder word work world would write year young""".split()
# Not so: each of these is several tokens.
BROKEN = """afterthought blameworthy clodhopper dimwitted featherbrain grumblesome humbuggery
insolent jabbering knucklehead loudmouthed muddleheaded nincompoop offputting pigheaded quarrelsome
rapscallion scatterbrain troublesome unmannerly villainous windbag yammering""".split()
