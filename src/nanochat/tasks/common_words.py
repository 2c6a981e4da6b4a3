"""Common English words of 3 to 9 letters, for the spelling tasks: people ask for these, a list of all words is mostly rare ones.

Counted in everyday and encyclopaedic text (sources hellaswag_text, socialiqa_text, wikipedia_summaries, boolq_text): the
1,600 with the highest geometric mean of the two shares, and a few that people try first.
"""

COMMON_WORDS = tuple(
    """
ability able about above academic accept accepted access accident according account achieve acid across act acting action active activity acts actual
actually add added addition address adult advance advanced advice affect affected after again against age agency agent ago agreement ahead aid air
alcohol all allow almost alone along alongside already also although always among amount analysis ancient and angle animal announced annual another
answer anti anxiety any anyone anything apart appear apple applied apply approach are area arm arms around art article artist aside ask attached
attack attempt attention audience author authority available average avoid away baby back bacteria bad bag baking balance ball balls banana band bank
bar base baseball based basic basis bat battery beach bear became because become becomes becoming bed been beer before begin beginning behavior behind
being believe below belt benefit best better between beyond bicycle big bike bill biology bird birth birthday bit black block blood blue board boat
body bond bone book border born both bottle bottom bought bowl box boy brain branch brand bread break breed bridge bring broke broken brother brought
brown brush budget build building built bus business but butter button buy cable cake calendar call came camera can cancer cannot cap capital car
carbon card care career carried carry carrying case cash cast cat catch caught cause causing cell center central century certain chain chair chance
change character charge check cheese chemical chemistry chest chicken child children chocolate choice choose church circle city civil claim class
classes clean cleaning clear climate close closed closely closer cloth clothes clothing club coach coat code coffee cold college color colored colors
com combined come comes coming common commonly community company complete completed complex computer concept concerned condition conflict connect
connected consider contact contain container content continue continued contract control cooking cool core corner correct cost could count counter
country county couple course court cover covered covering cream create creative credit crime criminal critical cross crowd cultural culture cup
current currently cut cutting cycle daily damage dance dark data date dating daughter day days dead deal death decide decided decision deep defense
defined degree depending describe design designed despite details determine develop developed device did diet different difficult digital dinner
direct directed direction directly disc disease dish disorder display distance distinct divided diving doctor document does dog dogs doing dominant
done door double down drama draw drawing dress dried drink drinking drive driving drop drug dry due during dust each ear earlier early easier easily
east easy eat eating edge education effect effective effects effort egg eight either electric element else email emergency emotional empty end ended
ending energy engine enough ensure enter entire entry equal equipment escape essential estate even event ever every everyday everyone evidence exactly
exam example except excess exchange exercise exist existing expensive explain expressed extended external extra extremely eye fabric face facing fact
failed fall falling family famous far fashion fast faster fat father favorite fear feature federal feed feel feeling feet fell felt female few field
fight fighting figure file filled film final finally financial find finding fine finger finish finished fire firm first fish fishing fit five fixed
flat flavor flight floor flour flow flower fluid fly flying focus follow following food foot football for force foreign form formal format formed
former forming formula forth forward found four fourth frame franchise free fresh friend from front fruit fuel full fully function fur furniture
further future gain galaxy game garden gas gave gear general generally get getting gift girl give given gives giving glass glasses goal goes going
gold good goods got grade gradually grain grass great greater greatest green ground group grow growing grown growth guitar gun guy had hair half hand
handle hands happen happy hard hardware has have having head health healthy heard heart heat heavy height held help helping her here herself high
higher highest highly him himself his history hit hockey hold holding hole holiday home horse hospital host hot hour hours house how however human
husband ice icon idea ideal identify identity illness image impact important improve inch include included income increase increased industry
infection influence initial injury inner inside instance instead insurance intended interest internal internet interview into involved iron island
issue item its itself job join joined joint juice jump jumping just keep keeping kept key kick kids kill kind king kitchen knew knife know knowledge
known lack lady laid lake land language large largest last late later law laws layer lead leader leading leads leaf learn learned learning least leave
leaves leaving led left leg legal legally lemon length lens less let letter level license life lift light lights like likely limit limited line link
liquid list listed little live lived lives living local located location long longer look looking loose lose losing loss lost lot love loved low lower
lying machine made mail main mainly maintain major majority make makeup making male man manage manager manual many map mark marked market marriage
married mass match material matter maximum may meal mean meaning measure measuring meat media medical medicine medium meet meeting member memory men
mental menu message met metal method mid middle might mild miles military milk million mind minimum minor minute mix mixed mixture mobile model modern
moment money month more morning most mostly mother motion motor mountain mouth move moved movement movie moving much multiple muscle music musical
must name named narrow national native natural naturally nature near nearby nearly necessary neck need needed needs negative nervous net network never
new news next night non normal normally north northern nose not note nothing notice novel now number numbers numerous object obtain occur ocean off
offer office officer official often oil old older once one ones online only onto open opened opening operating opposite option orange order ordered
organic organized original other otherwise out outdoor outer outside oven over overall own owner oxygen page paid pain paint painting pair pan panel
paper parallel parent park part partner parts party pass passing passport past path patient pattern pay payment pen pencil people pepper per percent
perfect perform period permanent person personal pet phone physical piano pick picture piece pink place plan plane plant plastic plate play player
playing point pole police policy political pool pop popular port portion position positive possible post pot potential powder power powerful practice
pre pregnancy pregnant prepare prepared presence present president press pressure prevent previous price primarily primary prior private probably
problem procedure process produce produced product program project proper properly property protect protein provide provided providing public pull
pulled purchase purpose put putting qualified qualify quality question quickly rabbit race radio rain raise raised ran range rate rather reach
reaction read reading ready real really reason receive received recent recently recognize record red reduce refer reference regarding region regular
regularly related relative release religion religious remain remains removal remove removed replace report represent request require research respect
response rest result resulting return returned review rice rich ride riding right ring rise risk river road rock role roll romantic roof room root
rope roughly round route rule run running safe safety said sale salt same sand sauce save saw say saying scale scene school science score screen sea
search season seat second secret section secure security see seed seen select self sell selling semi send sense sent separate series serious serve
service serving set setting seven several severe sex sexual shape shaped share sharp she sheet ship shirt shoot shooting shop shopping short shot
shots should shoulder show shower showing shown sick side sides sign silver similar simple simply since single sink sister sit site sitting situation
six size sized sizes skin sky sleep slightly slow slowly small smaller smoking smooth snow soap soccer social society soda soft software soil sold
solid solution some someone something sometimes son song soon sound source south southern space speak speaking special species specific speech speed
spend spent spin split spoken sport sports spot spread spring square stage stand standard standing stands star start starting state statement station
status stay steel stem step stick still stock stomach stone stop storage store story straight street strength stress string strong structure student
studied studio study style subject substance success such sugar suit suitable summer sun supply support sure surface surgery sweet swimming switch
symbol system table tail take taken taking talk talking tall tank tape target task taste tax tea teacher teaching team technique teeth tell telling
ten tend tennis term test text than that the their them theme then theory therapy there therefore these they thick thin thing think thinking third
this those though thought three through throw throwing thus ticket tie time times tip tissue title today together told too took tool top topic total
touch toward towards town toy track trade traffic train training transfer transport travel treat treatment tree trial tried trip trouble true trust
try trying tube turn turned turning turns twice two type typical typically unable under uniform unique unit united unless until upon upper use used
useful user usually vacation vacuum value variety various vary vegetable vehicle version very via video view vinegar visa visible visit visual voice
volume vote walk walking wall want war warm was washing waste watch watching water wave way ways wear wearing weather web wedding week weight well
went were west western wet what wheel when where whether which while white who whole whom whose why wide widely width wife wild will win wind window
wine winning winter wire with within without woman women won wood wooden word work worked working works world worth would wrestling write writer
writing written wrote yard year yellow yet you young your zone
""".split()  # noqa: SIM905  (a paragraph reads better than 1,618 quoted strings)
)
