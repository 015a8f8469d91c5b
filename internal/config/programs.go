package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"cardorder/internal/order"
)

// ProgramsFile is what issuers and the bureau agreed on at onboarding: what may
// be ordered. It is a file of its own because it changes while the service runs.
//
// A list that is left out restricts nothing, an empty one allows nothing.
type ProgramsFile struct {
	// Issuers that have programs; the others may order all that D1 takes.
	Issuers []IssuerPrograms `yaml:"issuers"`
}

// IssuerPrograms are the programs of one issuer.
type IssuerPrograms struct {
	// IssuerID is the id of a configured issuer.
	IssuerID string `yaml:"issuerId"`
	// Programs, one for each card product. A product without one is refused.
	Programs []Program `yaml:"programs"`
}

// Program is what may be ordered of one card product.
type Program struct {
	// CardProductID is what orders name it by.
	CardProductID string `yaml:"cardProductId"`
	// DistributionChannels are of THALES, INSTANT and CENTRAL.
	DistributionChannels []string `yaml:"distributionChannels"`
	// DestinationCountries are ISO 3166-1 alpha-2 codes.
	DestinationCountries []string `yaml:"destinationCountries"`
	// DeliveryMethods are of services.delivery; NO_SHIPMENT when it is left out.
	DeliveryMethods []string `yaml:"deliveryMethods"`
	// CardCarriers are of services.cardCarrier; NO_CARRIER when it is left out.
	CardCarriers []string `yaml:"cardCarriers"`
	// Packagings are of services.packaging; NO_PACK when it is left out.
	Packagings []string `yaml:"packagings"`
	// Inserts are of packagingConfig.inserts.
	Inserts []string `yaml:"inserts"`
	// PaymentApplications are the personalization configs and their keys.
	PaymentApplications []PaymentProfile `yaml:"paymentApplications"`
	// AlphaCard allows sample cards. Default false.
	AlphaCard bool `yaml:"alphaCard"`
	// Names says which names can be printed.
	Names NameRule `yaml:"names"`
	// EndsAt is the status at which an order has arrived, SHIPPED or PRODUCED.
	// Default: by channel and delivery.
	EndsAt string `yaml:"endsAt"`
	// DuplicateWindow replaces the issuer's for this card product.
	DuplicateWindow time.Duration `yaml:"duplicateWindow"`
	// SLA is how long the bureau may take.
	SLA *SLA `yaml:"sla"`
	// StageBudgets are for how long an order may be in a status, such as SUBMITTED: 24h.
	// One that is in it for longer is late.
	StageBudgets map[string]time.Duration `yaml:"stageBudgets"`
	// SilentAfter replaces the issuer's sending.silentAfter for this card product.
	SilentAfter *time.Duration `yaml:"silentAfter"`
	// DispatchDelay is for how long an order that is not urgent is kept back, so that it
	// can be cancelled for certain. Default 0s.
	DispatchDelay time.Duration `yaml:"dispatchDelay"`
	// MaxOrdersPerConsumerPerDay is how many orders of one consumer are sent in 24 hours;
	// further ones are held for a person. Default 0: any number.
	MaxOrdersPerConsumerPerDay *WholeNumber `yaml:"maxOrdersPerConsumerPerDay"`
}

// PaymentProfile is a personalization config with the key indexes that may go
// with it.
type PaymentProfile struct {
	Config               string   `yaml:"config"`
	ODAKeyIndexes        []string `yaml:"odaKeyIndexes"`
	DerivationKeyIndexes []string `yaml:"derivationKeyIndexes"`
	CVKeyIndexes         []string `yaml:"cvKeyIndexes"`
	PVKeyIndexes         []string `yaml:"pvKeyIndexes"`
}

// NameRule says which names can be printed.
type NameRule struct {
	// Characters is a regular expression (RE2) for one character. Default:
	// letters, digits, space and . ' - /
	Characters string `yaml:"characters"`
	// Length is how many characters there may be. Default 26.
	Length *WholeNumber `yaml:"length"`
}

// SLA is how long the bureau may take from receipt to shipping.
type SLA struct {
	// WorkingDays by services.issuance.
	WorkingDays WorkingDays `yaml:"workingDays"`
	// CutOff is the time of day, HH:MM, after which an order counts for the next day.
	CutOff string `yaml:"cutOff"`
	// TimeZone is the centre's, an IANA name. Default UTC.
	TimeZone string `yaml:"timeZone"`
	// ReadyBy is the time of day, HH:MM, by which the last day's cards are ready. Default:
	// the end of the day.
	ReadyBy string `yaml:"readyBy"`
	// Weekend are the days of the week without work. Default SATURDAY and SUNDAY; [] means
	// that there are none.
	Weekend []string `yaml:"weekend"`
	// Holidays are days without work besides, YYYY-MM-DD. Default none.
	Holidays []string `yaml:"holidays"`
	// Urgent is how long it may take for an urgent order.
	Urgent *Urgent `yaml:"urgent"`
}

// Urgent is how long the bureau may take for an urgent order that it has in time; a later
// one is as any other.
type Urgent struct {
	// Within is that time.
	Within time.Duration `yaml:"within"`
	// CutOff is the time of day, HH:MM, of a working day by which it has to be there.
	// Default: the end of the day.
	CutOff string `yaml:"cutOff"`
}

// WorkingDays are working days of the centre; 0 is the same day.
type WorkingDays struct {
	Creation    *WholeNumber `yaml:"CREATION"`
	Renewal     *WholeNumber `yaml:"RENEWAL"`
	Replacement *WholeNumber `yaml:"REPLACEMENT"`
}

// WholeNumber is an int that yaml does not round: it makes 0 of 0.5.
type WholeNumber int

// UnmarshalYAML reads a number that is whole as it is written.
func (n *WholeNumber) UnmarshalYAML(node *yaml.Node) error {
	if node.ShortTag() != "!!int" {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: cannot unmarshal %s into int", node.Line, node.ShortTag())}}
	}
	return node.Decode((*int)(n))
}

// Programs are one state of the programs file.
type Programs struct {
	Digest   string // SHA-256 of the file in hex, "" without a file
	byIssuer map[string]map[string]*order.Program
}

// Of returns an issuer's programs by cardProductId. Nil means that it has none:
// it may order all that D1 takes.
func (p *Programs) Of(issuerID string) map[string]*order.Program { return p.byIssuer[issuerID] }

// LoadPrograms reads and checks the programs file. The error lists every fault.
func (c *Config) LoadPrograms() (*Programs, error) {
	if c.ProgramsFile == "" {
		return &Programs{}, nil
	}
	text, err := c.ReadPrograms()
	if err != nil {
		return nil, err
	}
	return c.ParsePrograms(text)
}

// maxPrograms is far beyond any real programs file.
const maxPrograms = 16 << 20

// ReadPrograms reads the programs file as it is now.
func (c *Config) ReadPrograms() ([]byte, error) {
	f, err := os.Open(c.ProgramsFile)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxPrograms+1))
	if err == nil && len(text) > maxPrograms {
		err = fmt.Errorf("%s is larger than %d bytes", c.ProgramsFile, maxPrograms)
	}
	return text, err
}

// ParsePrograms is LoadPrograms for a text.
func (c *Config) ParsePrograms(text []byte) (*Programs, error) {
	var file ProgramsFile
	faults, err := decode(text, &file)
	if err != nil {
		return nil, err
	}
	var root yaml.Node
	if err := yaml.Unmarshal(text, &root); err != nil {
		return nil, errors.New(syntaxFault(err.Error()))
	}
	ch := checker{faults: append(faults, withoutValue(&root)...), environment: c.Environment}
	c.checkPrograms(&ch, file)
	if len(ch.faults) > 0 {
		return nil, errors.Join(ch.faults...)
	}
	digest := sha256.Sum256(text)
	p := &Programs{Digest: hex.EncodeToString(digest[:]), byIssuer: make(map[string]map[string]*order.Program)}
	for _, in := range file.Issuers {
		programs := make(map[string]*order.Program, len(in.Programs))
		for i := range in.Programs {
			program, err := in.Programs[i].rules()
			if err != nil {
				return nil, err
			}
			if program.SilentAfter = c.issuer(in.IssuerID).Sending.silentAfter(); in.Programs[i].SilentAfter != nil {
				program.SilentAfter = *in.Programs[i].SilentAfter
			}
			setDefault(&program.DuplicateWindow, c.issuer(in.IssuerID).DuplicateWindow)
			setDefault(&program.DuplicateWindow, defaultDuplicateWindow)
			programs[program.CardProductID] = program
		}
		p.byIssuer[in.IssuerID] = programs
	}
	return p, nil
}

// issuer returns the configured issuer, or nil.
func (c *Config) issuer(id string) *Issuer {
	i := slices.IndexFunc(c.Issuers, func(in Issuer) bool { return in.ID == id })
	if i < 0 {
		return nil
	}
	return &c.Issuers[i]
}

// withoutValue finds settings and entries with nothing behind them. Whether
// such a list restricts nothing or allows nothing would be a guess.
func withoutValue(node *yaml.Node) (faults []error) {
	for i, child := range node.Content {
		isName := node.Kind == yaml.MappingNode && i%2 == 0
		switch {
		case isName:
		case !isNull(child):
			faults = append(faults, withoutValue(child)...)
		case node.Kind == yaml.MappingNode:
			of := node.Content[i-1]
			faults = append(faults, fmt.Errorf("line %d: the setting%s has no value", of.Line, name(of.Value)))
		case node.Kind == yaml.SequenceNode:
			faults = append(faults, fmt.Errorf("line %d: an entry has no value", child.Line))
		}
	}
	return faults
}

func isNull(node *yaml.Node) bool {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	return node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null"
}

func (c *Config) checkPrograms(ch *checker, file ProgramsFile) {
	if len(file.Issuers) == 0 {
		ch.fault("issuers", "needs at least one issuer")
	}
	seen := make(map[string]bool)
	for i, in := range file.Issuers {
		path := fmt.Sprintf("issuers[%d]", i)
		if ch.required(path+".issuerId", in.IssuerID) {
			if c.issuer(in.IssuerID) == nil {
				ch.fault(path+".issuerId", "names an issuer that is not configured")
			}
			if seen[in.IssuerID] {
				ch.fault(path+".issuerId", "is the id of another issuer")
			}
			seen[in.IssuerID] = true
		}
		if in.Programs == nil {
			ch.fault(path+".programs", "is required; [] allows nothing")
		}
		products := make(map[string]bool)
		for j := range in.Programs {
			at := fmt.Sprintf("%s.programs[%d]", path, j)
			p := &in.Programs[j]
			if ch.agreedID(at+".cardProductId", p.CardProductID, maxCardProductID) && products[p.CardProductID] {
				ch.fault(at+".cardProductId", "is the id of another program")
			}
			products[p.CardProductID] = true
			p.check(ch, at)
		}
	}
}

// Lengths of identifiers, as orders may have them.
const (
	maxCardProductID = 48
	maxAgreedID      = 64
)

var idCharacters = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// agreedID checks something that both sides agreed on at onboarding.
func (c *checker) agreedID(path, id string, limit int) bool {
	ok := len(id) <= limit && idCharacters.MatchString(id)
	if !ok {
		c.fault(path, "must be 1 to %d characters of A-Z a-z 0-9 _ -", limit)
	}
	return ok
}

// each checks the entries of a list and that none stands in it twice.
func (c *checker) each(path string, list []string, check func(path, value string)) {
	for i, value := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		if slices.Contains(list[:i], value) {
			c.fault(at, "stands in the list already")
			continue
		}
		check(at, value)
	}
}

func (c *checker) agreedIDs(path string, list []string) {
	c.each(path, list, func(at, id string) { c.agreedID(at, id, maxAgreedID) })
}

func (p *Program) check(ch *checker, path string) {
	ch.each(path+".distributionChannels", p.DistributionChannels, func(at, channel string) {
		if !slices.Contains(order.Channels, order.Channel(channel)) {
			ch.fault(at, "must be THALES, INSTANT or CENTRAL")
		}
	})
	ch.each(path+".destinationCountries", p.DestinationCountries, func(at, code string) {
		if !order.KnownCountry(code) {
			ch.fault(at, "must be the ISO 3166-1 alpha-2 code of a country, in capitals")
		}
	})
	ch.agreedIDs(path+".deliveryMethods", p.DeliveryMethods)
	ch.agreedIDs(path+".cardCarriers", p.CardCarriers)
	ch.agreedIDs(path+".packagings", p.Packagings)
	ch.agreedIDs(path+".inserts", p.Inserts)
	configs := make(map[string]bool)
	for i, app := range p.PaymentApplications {
		at := fmt.Sprintf("%s.paymentApplications[%d]", path, i)
		if ch.agreedID(at+".config", app.Config, maxAgreedID) && configs[app.Config] {
			ch.fault(at+".config", "is the config of another entry")
		}
		configs[app.Config] = true
		ch.agreedIDs(at+".odaKeyIndexes", app.ODAKeyIndexes)
		ch.agreedIDs(at+".derivationKeyIndexes", app.DerivationKeyIndexes)
		ch.agreedIDs(at+".cvKeyIndexes", app.CVKeyIndexes)
		ch.agreedIDs(at+".pvKeyIndexes", app.PVKeyIndexes)
	}
	if p.Names.Characters != "" && !matchesOneCharacter(p.Names.Characters) {
		ch.fault(path+".names.characters", "must be a regular expression (RE2) for one character, such as [A-Z .'/-]")
	}
	ch.between(path+".names.length", p.Names.Length, 1, maxNameLength)
	switch order.Status(p.EndsAt) {
	case "", order.Produced:
	case order.Shipped:
		// An order that is never shipped would stay open for ever, and keep its card.
		if allows(p.DistributionChannels, string(order.ChannelInstant)) {
			ch.fault(path+".endsAt", "can be SHIPPED only where distributionChannels leaves INSTANT out: its cards are not shipped")
		} else if allows(p.DistributionChannels, string(order.ChannelThales)) && allows(p.DeliveryMethods, order.NoShipment) {
			ch.fault(path+".endsAt", "can be SHIPPED for THALES only where deliveryMethods leaves NO_SHIPMENT out")
		}
	default:
		ch.fault(path+".endsAt", "must be SHIPPED or PRODUCED")
	}
	ch.notNegative(path+".duplicateWindow", p.DuplicateWindow)
	if p.SLA != nil {
		p.SLA.check(ch, path+".sla")
	}
	for _, status := range slices.Sorted(maps.Keys(p.StageBudgets)) {
		if !order.HasBudget(order.Status(status)) {
			ch.fault(path+".stageBudgets", "has a name that is no status, or one at which nothing more is waited for")
		} else if p.StageBudgets[status] <= 0 {
			ch.fault(path+".stageBudgets."+status, "must be more than 0s")
		} else if p.StageBudgets[status] > aYear {
			ch.fault(path+".stageBudgets."+status, "must be at most %s", aYear)
		}
	}
	if p.SilentAfter != nil {
		ch.silentAfter(path+".silentAfter", *p.SilentAfter)
	}
	ch.notNegative(path+".dispatchDelay", p.DispatchDelay)
	if p.DispatchDelay > maxDispatchDelay {
		ch.fault(path+".dispatchDelay", "must be at most %s", maxDispatchDelay)
	}
	ch.between(path+".maxOrdersPerConsumerPerDay", p.MaxOrdersPerConsumerPerDay, 0, 1_000_000)
}

// aYear is longer than anything that is waited for.
const aYear = 366 * 24 * time.Hour

// maxDispatchDelay is for how long an order can be kept back at its own request, too.
const maxDispatchDelay = 90 * 24 * time.Hour

// silentAfter checks after what silence D1 is asked about an order.
func (c *checker) silentAfter(path string, d time.Duration) {
	c.notNegative(path, d)
	const least = time.Minute
	if d > 0 && d < least && c.environment != "development" {
		c.fault(path, "must be at least %s, or 0s for never", least)
	}
	if d > aYear {
		c.fault(path, "must be at most %s", aYear)
	}
}

// allows tells whether a list lets value pass.
func allows(list []string, value string) bool { return list == nil || slices.Contains(list, value) }

// maxNameLength is the longest name in an address.
const maxNameLength = 64

func (c *checker) between(path string, n *WholeNumber, least, most WholeNumber) {
	if n != nil && (*n < least || *n > most) {
		c.fault(path, "must be %d to %d", least, most)
	}
}

// matchesOneCharacter tells whether all that expression matches is one
// character long.
func matchesOneCharacter(expression string) bool {
	parsed, err := syntax.Parse(expression, syntax.Perl)
	return err == nil && oneCharacter(parsed)
}

func oneCharacter(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpLiteral:
		return len(re.Rune) == 1
	case syntax.OpCharClass:
		return len(re.Rune) > 0 // an empty one matches nothing
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return true
	case syntax.OpCapture:
		return oneCharacter(re.Sub[0])
	case syntax.OpAlternate:
		return !slices.ContainsFunc(re.Sub, func(sub *syntax.Regexp) bool { return !oneCharacter(sub) })
	}
	return false
}

func (s *SLA) check(ch *checker, path string) {
	days := path + ".workingDays"
	if s.WorkingDays == (WorkingDays{}) {
		ch.fault(days, "needs at least one of CREATION, RENEWAL, REPLACEMENT")
	}
	const most = 366
	ch.between(days+".CREATION", s.WorkingDays.Creation, 0, most)
	ch.between(days+".RENEWAL", s.WorkingDays.Renewal, 0, most)
	ch.between(days+".REPLACEMENT", s.WorkingDays.Replacement, 0, most)
	if ch.timeOfDay(path+".cutOff", s.CutOff) || ch.timeOfDay(path+".readyBy", s.ReadyBy) {
		ch.required(path+".timeZone", s.TimeZone)
	}
	// Local is another zone on every machine.
	if _, err := time.LoadLocation(s.TimeZone); err != nil || s.TimeZone == "Local" {
		ch.fault(path+".timeZone", "must be the name of a time zone, such as Europe/Paris")
	}
	ch.each(path+".weekend", s.Weekend, func(at, day string) {
		if _, ok := weekdays[day]; !ok {
			ch.fault(at, "must be a day of the week, as SUNDAY")
		}
	})
	if len(s.Weekend) == len(weekdays) {
		ch.fault(path+".weekend", "leaves no day to work")
	}
	ch.each(path+".holidays", s.Holidays, func(at, day string) {
		if _, err := time.Parse(time.DateOnly, day); err != nil {
			ch.fault(at, "must be a day as YYYY-MM-DD")
		}
	})
	if s.Urgent != nil {
		if s.Urgent.Within <= 0 {
			ch.fault(path+".urgent.within", "must be more than 0s")
		}
		if s.Urgent.Within > aYear {
			ch.fault(path+".urgent.within", "must be at most %s", aYear)
		}
		if ch.timeOfDay(path+".urgent.cutOff", s.Urgent.CutOff) {
			ch.required(path+".timeZone", s.TimeZone)
		}
	}
}

// timeOfDay checks a time of day, and tells whether there is one.
func (c *checker) timeOfDay(path, text string) bool {
	if _, err := time.Parse("15:04", text); text != "" && (err != nil || len(text) != len("15:04")) {
		c.fault(path, "must be a time of day as HH:MM, in quotes")
	}
	return text != ""
}

// weekdays are the days of the week as the file names them.
var weekdays = func() map[string]time.Weekday {
	days := make(map[string]time.Weekday)
	for day := time.Sunday; day <= time.Saturday; day++ {
		days[strings.ToUpper(day.String())] = day
	}
	return days
}()

// rules turns a program that was checked into what orders are checked against.
func (p *Program) rules() (*order.Program, error) {
	rules := &order.Program{
		CardProductID:        p.CardProductID,
		DistributionChannels: typed[order.Channel](p.DistributionChannels),
		DestinationCountries: p.DestinationCountries,
		DeliveryMethods:      p.DeliveryMethods,
		CardCarriers:         p.CardCarriers,
		Packagings:           p.Packagings,
		Inserts:              p.Inserts,
		AlphaCard:            p.AlphaCard,
		EndsAt:               order.Status(p.EndsAt),
		DuplicateWindow:      p.DuplicateWindow,
		DispatchDelay:        p.DispatchDelay,
	}
	if p.MaxOrdersPerConsumerPerDay != nil {
		rules.MaxOrdersPerConsumerPerDay = int(*p.MaxOrdersPerConsumerPerDay)
	}
	if p.StageBudgets != nil {
		rules.StageBudgets = make(map[order.Status]time.Duration, len(p.StageBudgets))
	}
	for status, budget := range p.StageBudgets {
		rules.StageBudgets[order.Status(status)] = budget
	}
	if p.PaymentApplications != nil {
		rules.PaymentApplications = make([]order.PaymentProfile, len(p.PaymentApplications))
	}
	for i, app := range p.PaymentApplications {
		rules.PaymentApplications[i] = order.PaymentProfile(app)
	}
	if p.Names.Characters != "" {
		rules.Names.Character = regexp.MustCompile(p.Names.Characters)
	}
	if p.Names.Length != nil {
		rules.Names.Length = int(*p.Names.Length)
	}
	if p.SLA == nil {
		return rules, nil
	}
	rules.SLA = p.SLA.rules()
	calendar, err := order.NewCalendar(rules.SLA)
	if err != nil {
		return nil, fmt.Errorf("sla of %s: %w", p.CardProductID, err)
	}
	rules.Calendar = calendar
	return rules, nil
}

func (s *SLA) rules() order.SLA {
	sla := order.SLA{
		WorkingDays: s.WorkingDays.byIssuance(), CutOff: s.CutOff, TimeZone: s.TimeZone, ReadyBy: s.ReadyBy, Holidays: s.Holidays,
	}
	if s.Weekend != nil {
		sla.Weekend = make([]time.Weekday, len(s.Weekend))
	}
	for i, day := range s.Weekend {
		sla.Weekend[i] = weekdays[day]
	}
	if s.Urgent != nil {
		sla.Urgent = order.Urgent(*s.Urgent)
	}
	return sla
}

func (w WorkingDays) byIssuance() map[order.Issuance]int {
	days := make(map[order.Issuance]int)
	for issuance, n := range map[order.Issuance]*WholeNumber{
		order.IssuanceCreation: w.Creation, order.IssuanceRenewal: w.Renewal, order.IssuanceReplacement: w.Replacement,
	} {
		if n != nil {
			days[issuance] = int(*n)
		}
	}
	return days
}

// typed keeps the difference between no list and an empty one.
func typed[T ~string](list []string) []T {
	if list == nil {
		return nil
	}
	values := make([]T, len(list))
	for i, value := range list {
		values[i] = T(value)
	}
	return values
}
