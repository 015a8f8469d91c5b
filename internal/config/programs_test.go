package config_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"cardorder/internal/config"
	"cardorder/internal/order"
)

// twoIssuers are what a programs file is checked against.
var twoIssuers = &config.Config{Issuers: []config.Issuer{{ID: "ISSUER0001", DuplicateWindow: 48 * time.Hour}, {ID: "ISSUER0002"}}}

const wholeProgram = `issuers:
  - issuerId: ISSUER0001
    programs:
      - cardProductId: gold-debit
        distributionChannels: [THALES, CENTRAL]
        destinationCountries: [FR, NO]
        deliveryMethods: [POST, COURIER]
        cardCarriers: [WELCOME]
        packagings: []
        inserts: [LEAFLET]
        paymentApplications:
          - {config: visa-debit, odaKeyIndexes: [01, "02"], derivationKeyIndexes: ["01"], cvKeyIndexes: [], pvKeyIndexes: [7]}
          - {config: visa-credit}
        alphaCard: true
        names: {characters: "[A-Z .'/-]", length: 20}
        endsAt: SHIPPED
        duplicateWindow: 24h
        sla:
          {workingDays: {CREATION: 0, RENEWAL: 10}, cutOff: 12:00, timeZone: Europe/Paris, readyBy: 17:00, weekend: [FRIDAY],
          holidays: [2026-12-25], urgent: {within: 4h, cutOff: 11:30}}
        stageBudgets: {SUBMITTED: 24h}
        silentAfter: 0s
        dispatchDelay: 30m
        maxOrdersPerConsumerPerDay: 5
      - {cardProductId: silver}
  - {issuerId: ISSUER0002, programs: []}
`

func TestPrograms(t *testing.T) {
	t.Parallel()
	p, err := twoIssuers.ParsePrograms([]byte(wholeProgram))
	if err != nil {
		t.Fatal(err)
	}
	if digest := sha256.Sum256([]byte(wholeProgram)); p.Digest != hex.EncodeToString(digest[:]) {
		t.Errorf("digest %s", p.Digest)
	}
	gold := *p.Of("ISSUER0001")["gold-debit"]
	if gold.Names.Character == nil || gold.Names.Character.String() != "[A-Z .'/-]" || gold.Names.Length != 20 {
		t.Errorf("names %v", gold.Names)
	}
	gold.Names = order.NameRule{}
	want := order.Program{
		CardProductID:        "gold-debit",
		DistributionChannels: []order.Channel{order.ChannelThales, order.ChannelCentral},
		DestinationCountries: []string{"FR", "NO"}, // not YAML's "no"
		DeliveryMethods:      []string{"POST", "COURIER"},
		CardCarriers:         []string{"WELCOME"},
		Packagings:           []string{},
		Inserts:              []string{"LEAFLET"},
		PaymentApplications: []order.PaymentProfile{
			{
				Config: "visa-debit", ODAKeyIndexes: []string{"01", "02"}, DerivationKeyIndexes: []string{"01"},
				CVKeyIndexes: []string{}, PVKeyIndexes: []string{"7"},
			},
			{Config: "visa-credit"},
		},
		AlphaCard: true, EndsAt: order.Shipped, DuplicateWindow: 24 * time.Hour,
		SLA: order.SLA{
			WorkingDays: map[order.Issuance]int{order.IssuanceCreation: 0, order.IssuanceRenewal: 10},
			CutOff:      "12:00", TimeZone: "Europe/Paris", ReadyBy: "17:00", Weekend: []time.Weekday{time.Friday},
			Holidays: []string{"2026-12-25"}, Urgent: order.Urgent{Within: 4 * time.Hour, CutOff: "11:30"},
		},
		StageBudgets: map[order.Status]time.Duration{order.Submitted: 24 * time.Hour}, DispatchDelay: 30 * time.Minute, MaxOrdersPerConsumerPerDay: 5,
	}
	if limits := gold.Limits(); limits.Calendar == nil || limits.Budget[order.Submitted] != 24*time.Hour || limits.DispatchDelay != 30*time.Minute ||
		limits.SilentAfter != 0 || limits.MaxOrdersPerConsumerPerDay != 5 {
		t.Errorf("limits %+v", limits)
	}
	gold.Calendar = nil
	if !reflect.DeepEqual(gold, want) {
		t.Errorf("got  %+v\nwant %+v", gold, want)
	}
	// What is left out restricts nothing, and has the issuer's window and patience.
	if silver := *p.Of("ISSUER0001")["silver"]; !reflect.DeepEqual(silver, order.Program{CardProductID: "silver", DuplicateWindow: 48 * time.Hour, SilentAfter: 24 * time.Hour}) {
		t.Errorf("got %+v", silver)
	}
	if none := p.Of("ISSUER0002"); none == nil || len(none) > 0 {
		t.Errorf("an empty list of programs allows %v", none)
	}
	if unnamed := p.Of("ISSUER0003"); unnamed != nil {
		t.Errorf("an issuer that is not named has programs: %v", unnamed)
	}
}

// program is a file with one program that has the given settings.
func program(settings string) string {
	return "issuers:\n  - issuerId: ISSUER0001\n    programs:\n      - {cardProductId: gold, " + settings + "}\n"
}

func TestProgramFaults(t *testing.T) {
	t.Parallel()
	const (
		in   = "issuers[0].programs[0]."
		id   = "must be 1 to 64 characters of A-Z a-z 0-9 _ -"
		line = "line 4: "
	)
	long := strings.Repeat("x", 65)
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"empty":                   {"", []string{"issuers: needs at least one issuer"}},
		"no issuers":              {"issuers: []\n", []string{"issuers: needs at least one issuer"}},
		"null issuers":            {"issuers:\n", []string{"line 1: the setting issuers has no value", "issuers: needs at least one issuer"}},
		"issuer without programs": {"issuers: [{issuerId: ISSUER0001}]", []string{"issuers[0].programs: is required; [] allows nothing"}},
		"programs without issuer": {"issuers: [{programs: []}]", []string{"issuers[0].issuerId: is required"}},
		"issuer not configured":   {"issuers: [{issuerId: hunter2, programs: []}]", []string{"issuers[0].issuerId: names an issuer that is not configured"}},
		"issuer twice": {
			"issuers: [{issuerId: ISSUER0001, programs: []}, {issuerId: ISSUER0001, programs: []}]",
			[]string{"issuers[1].issuerId: is the id of another issuer"},
		},
		"product missing": {"issuers: [{issuerId: ISSUER0001, programs: [{alphaCard: true}]}]", []string{in + "cardProductId: must be 1 to 48"}},
		"product too long": {
			"issuers: [{issuerId: ISSUER0001, programs: [{cardProductId: " + long[:49] + "}]}]", []string{in + "cardProductId: must be 1 to 48"},
		},
		"product twice": {
			"issuers: [{issuerId: ISSUER0001, programs: [{cardProductId: a}, {cardProductId: b}, {cardProductId: a}]}]",
			[]string{"issuers[0].programs[2].cardProductId: is the id of another program"},
		},
		"unknown settings": {
			"owner: x\n" + program("countries: [FR], names: {pattern: x}"),
			[]string{"line 1: unknown setting owner", "line 5: unknown setting countries", "line 5: unknown setting pattern"},
		},
		"setting twice":    {program("inserts: [A], inserts: [B]"), []string{line + "the setting inserts stands in line 4 already"}},
		"second document":  {program("") + "---\n", []string{"there is a second document"}},
		"not YAML":         {"issuers: [", []string{"not YAML: line 1"}},
		"list without end": {program("inserts: "), []string{line + "the setting inserts has no value"}},
		"null in a list":   {program("inserts: [A, ~]"), []string{line + "an entry has no value"}},
		"null by alias": {
			"issuers:\n  - issuerId: ISSUER0001\n    programs:\n      - {cardProductId: gold, inserts: &none , packagings: *none }\n",
			[]string{line + "the setting inserts has no value", line + "the setting packagings has no value"},
		},
		"null deep inside":     {program("paymentApplications: [{config: a, cvKeyIndexes: }]"), []string{line + "the setting cvKeyIndexes has no value"}},
		"text for a list":      {program("inserts: hunter2"), []string{line + "must be a list of texts"}},
		"text for a truth":     {program("alphaCard: hunter2"), []string{line + "must be true or false"}},
		"text for a duration":  {program("duplicateWindow: hunter2"), []string{line + "must be a duration such as"}},
		"text for a number":    {program("names: {length: hunter2}"), []string{line + "must be a whole number", in + "names.length: must be"}},
		"half a day":           {program("sla: {workingDays: {CREATION: 0.5}}"), []string{line + "must be a whole number"}},
		"channels":             {program("distributionChannels: [THALES, hunter2, thales]"), []string{in + "distributionChannels[1]: must be THALES", in + "distributionChannels[2]: must"}},
		"countries":            {program("destinationCountries: [FR, fr, UK, XX, FRA, '']"), countryFaults(in, 1, 2, 3, 4, 5)},
		"a country twice":      {program("destinationCountries: [FR, DE, FR]"), []string{in + "destinationCountries[2]: stands in the list already"}},
		"delivery methods":     {program("deliveryMethods: [POST, 'hunter2 ']"), []string{in + "deliveryMethods[1]: " + id}},
		"carriers":             {program("cardCarriers: ['', " + long + "]"), []string{in + "cardCarriers[0]: " + id, in + "cardCarriers[1]: " + id}},
		"packagings":           {program("packagings: [ü]"), []string{in + "packagings[0]: " + id}},
		"inserts":              {program("inserts: [a.b]"), []string{in + "inserts[0]: " + id}},
		"config":               {program("paymentApplications: [{}, {config: a b}]"), []string{in + "paymentApplications[0].config: " + id, in + "paymentApplications[1].config: " + id}},
		"config twice":         {program("paymentApplications: [{config: a}, {config: a}]"), []string{in + "paymentApplications[1].config: is the config of another entry"}},
		"key indexes":          {program("paymentApplications: [{config: a, odaKeyIndexes: [' '], derivationKeyIndexes: ['*'], cvKeyIndexes: [/], pvKeyIndexes: ['']}]"), keyFaults(in + "paymentApplications[0].")},
		"a key index twice":    {program("paymentApplications: [{config: a, odaKeyIndexes: [01, \"01\"]}]"), []string{in + "paymentApplications[0].odaKeyIndexes[1]: stands"}},
		"name length":          {program("names: {length: 0}"), []string{in + "names.length: must be 1 to 64"}},
		"long names":           {program("names: {length: 65}"), []string{in + "names.length: must be 1 to 64"}},
		"ends nowhere":         {program("endsAt: DELIVERED"), []string{in + "endsAt: must be SHIPPED or PRODUCED"}},
		"instant never ships":  {program("distributionChannels: [THALES, INSTANT], endsAt: SHIPPED"), []string{in + "endsAt: can be SHIPPED only"}},
		"any channel ships":    {program("endsAt: SHIPPED"), []string{in + "endsAt: can be SHIPPED only"}},
		"any delivery ships":   {program("distributionChannels: [THALES], endsAt: SHIPPED"), []string{in + "endsAt: can be SHIPPED for THALES only"}},
		"no shipment ships":    {program("distributionChannels: [THALES], deliveryMethods: [POST, NO_SHIPMENT], endsAt: SHIPPED"), []string{in + "endsAt: can be SHIPPED for THALES only"}},
		"negative window":      {program("duplicateWindow: -1h"), []string{in + "duplicateWindow: must not be negative"}},
		"empty SLA":            {program("sla: {}"), []string{in + "sla.workingDays: needs at least one"}},
		"SLA of the past":      {program("sla: {workingDays: {CREATION: -1, RENEWAL: 367}}"), []string{in + "sla.workingDays.CREATION: must be 0 to 366", in + "sla.workingDays.RENEWAL: must"}},
		"SLA of what":          {program("sla: {workingDays: {RENEWAL: 1, URGENT: 1}}"), []string{line + "unknown setting URGENT"}},
		"cut-off without zone": {program("sla: {workingDays: {RENEWAL: 1}, cutOff: '12:00'}"), []string{in + "sla.timeZone: is required"}},
		"cut-off":              {program("sla: {workingDays: {RENEWAL: 1}, cutOff: '9:00', timeZone: UTC}"), []string{in + "sla.cutOff: must be a time of day"}},
		"late cut-off":         {program("sla: {workingDays: {RENEWAL: 1}, cutOff: '24:00', timeZone: UTC}"), []string{in + "sla.cutOff: must be a time of day"}},
		"half a weekend":       {program("sla: {workingDays: {RENEWAL: 1}, weekend: [SAT, SUNDAY, SUNDAY]}"), []string{in + "sla.weekend[0]: must be a day", in + "sla.weekend[2]: stands"}},
		"no working day":       {program("sla: {workingDays: {RENEWAL: 1}, weekend: [MONDAY, TUESDAY, WEDNESDAY, THURSDAY, FRIDAY, SATURDAY, SUNDAY]}"), []string{in + "sla.weekend: leaves no day"}},
		"holiday":              {program("sla: {workingDays: {RENEWAL: 1}, holidays: [2026-02-29, 24.12.]}"), []string{in + "sla.holidays[0]: must be a day", in + "sla.holidays[1]: must"}},
		"ready without zone":   {program("sla: {workingDays: {RENEWAL: 1}, readyBy: '17:00'}"), []string{in + "sla.timeZone: is required"}},
		"ready":                {program("sla: {workingDays: {RENEWAL: 1}, readyBy: 5pm, timeZone: UTC}"), []string{in + "sla.readyBy: must be a time of day"}},
		"urgent":               {program("sla: {workingDays: {RENEWAL: 1}, urgent: {cutOff: '12:00'}}"), []string{in + "sla.urgent.within: must be more", in + "sla.timeZone: is required"}},
		"budget of nothing":    {program("stageBudgets: {SHIPPED: 1h, SUBMITTED: 0s}"), []string{in + "stageBudgets: has a name that is no status", in + "stageBudgets.SUBMITTED: must be more"}},
		"longer than a year": {program("stageBudgets: {SUBMITTED: 8785h}, silentAfter: 8785h, sla: {workingDays: {RENEWAL: 1}, urgent: {within: 8785h}}"), []string{
			in + "sla.urgent.within: must be at most 8784h", in + "stageBudgets.SUBMITTED: must be at most", in + "silentAfter: must be at most",
		}},
		"silence":               {program("silentAfter: -1s"), []string{in + "silentAfter: must not be negative"}},
		"a short silence":       {program("silentAfter: 10s"), []string{in + "silentAfter: must be at least 1m"}},
		"a long delay":          {program("dispatchDelay: 2161h"), []string{in + "dispatchDelay: must be at most 2160h"}},
		"fewer than none":       {program("maxOrdersPerConsumerPerDay: -1"), []string{in + "maxOrdersPerConsumerPerDay: must be 0 to"}},
		"time zone":             {program("sla: {workingDays: {RENEWAL: 1}, timeZone: Europe/hunter2}"), []string{in + "sla.timeZone: must be the name"}},
		"time zone of whom":     {program("sla: {workingDays: {RENEWAL: 1}, timeZone: Local}"), []string{in + "sla.timeZone: must be the name"}},
		"time zone from a path": {program("sla: {workingDays: {RENEWAL: 1}, timeZone: ../../etc/passwd}"), []string{in + "sla.timeZone: must be the name"}},
		"all at once": {
			"surprise: 1\n" + program("distributionChannels: [X], names: {characters: '['}") + "  - {issuerId: NOBODY, programs: [{cardProductId: '', endsAt: X}]}\n",
			[]string{
				"line 1: unknown setting surprise", in + "distributionChannels[0]: must", in + "names.characters: must",
				"issuers[1].issuerId: names", "issuers[1].programs[0].cardProductId: must", "issuers[1].programs[0].endsAt: must",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantProgramFaults(t, c.text, c.want...)
		})
	}
}

func countryFaults(in string, indexes ...int) (faults []string) {
	for _, i := range indexes {
		faults = append(faults, fmt.Sprintf("%sdestinationCountries[%d]: must be the ISO 3166-1", in, i))
	}
	return faults
}

func keyFaults(in string) (faults []string) {
	for _, name := range []string{"odaKeyIndexes", "derivationKeyIndexes", "cvKeyIndexes", "pvKeyIndexes"} {
		faults = append(faults, in+name+"[0]: must be 1 to 64 characters")
	}
	return faults
}

func wantProgramFaults(t *testing.T, text string, want ...string) {
	t.Helper()
	_, err := twoIssuers.ParsePrograms([]byte(text))
	wantLines(t, err, want...)
}

func TestNameCharacters(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"[A-Z]", "a", ".", `\pL`, `[^0-9]`, "a|[b-d]|é", "([A-Z])", "(?i)[a-z]", `[A-Z .'/-]`, `\.`} {
		if _, err := twoIssuers.ParsePrograms([]byte(program(fmt.Sprintf("names: {characters: %q}", good)))); err != nil {
			t.Errorf("%s is refused: %v", good, err)
		}
	}
	for _, bad := range []string{"[A-Z]+", "[A-Z]?", "[A-Z]*", "ab", "^[A-Z]$", "[A-Z", "a|bc", "(?=a)", "[A-Z]{2}", "()", `[^\x00-\x{10FFFF}]`, `\b`} {
		wantProgramFaults(t, program(fmt.Sprintf("names: {characters: %q}", bad)), "issuers[0].programs[0].names.characters: must be a regular expression")
	}
}

// A configuration with a programs file that is not right is not right either.
func TestProgramsFile(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	path := filepath.Join(f.dir, "programs.yaml")
	with := "programsFile: " + path + "\n" + f.minimal()
	wantFaults(t, with, "programsFile: open "+path)
	write(t, path, "surprise: hunter2-hunter2\nissuers: []\n")
	wantFaults(t, with, "programsFile: line 1: unknown setting surprise", "programsFile: issuers: needs at least one issuer")
	write(t, path, program("alphaCard: true"))
	cfg := parse(t, with)
	p, err := cfg.LoadPrograms()
	if err != nil {
		t.Fatal(err)
	}
	if gold := p.Of("ISSUER0001")["gold"]; gold == nil || !gold.AlphaCard {
		t.Errorf("got %+v", gold)
	}
	if p, err := parse(t, f.minimal()).LoadPrograms(); err != nil || p.Digest != "" || p.Of("ISSUER0001") != nil {
		t.Errorf("without a file: %+v, %v", p, err)
	}
	if err := os.Truncate(path, 17<<20); err != nil {
		t.Fatal(err)
	}
	wantFaults(t, with, "programsFile: "+path+" is larger than")
}

func TestCentralMayEndShipped(t *testing.T) {
	t.Parallel()
	if _, err := twoIssuers.ParsePrograms([]byte(program("distributionChannels: [CENTRAL], endsAt: SHIPPED"))); err != nil {
		t.Error(err) // a tracking hub may follow it
	}
}
