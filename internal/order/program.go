package order

import (
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Rules are what an issuer's orders have to meet besides D1's own rules.
type Rules struct {
	// Guard finds card numbers where none may stand; its BINs are also what a
	// card number in sensitiveData has to begin with, when there are any.
	Guard PANGuard
	// Programs say what may be ordered, by cardProductId. Nil allows all that D1
	// takes.
	Programs map[string]*Program
	// ProgramsDigest names the file that Programs are from, "" without one.
	ProgramsDigest string
	// IndividualAddress makes shipment.individualAddress a must for INDIVIDUAL
	// shipments: D1's documents disagree.
	IndividualAddress bool
}

// Program is what an issuer and the bureau agreed on at onboarding for one card
// product (D1: program set-up). A nil list restricts nothing; an empty one
// allows nothing.
type Program struct {
	CardProductID        string
	DistributionChannels []Channel
	DestinationCountries []string // ISO 3166-1 alpha-2, of shipment.deliveryAddress
	DeliveryMethods      []string // services.delivery, NO_SHIPMENT when it is left out
	CardCarriers         []string // services.cardCarrier, NO_CARRIER when it is left out
	Packagings           []string // services.packaging, NO_PACK when it is left out
	Inserts              []string // packagingConfig.inserts
	PaymentApplications  []PaymentProfile
	AlphaCard            bool // whether sample cards may be ordered
	Names                NameRule
	// EndsAt is the status at which an order has arrived: Produced or Shipped. Empty
	// leaves it to the channel and the delivery.
	EndsAt Status
	// DuplicateWindow is for how long after a CREATION was produced another one of
	// the same card is refused; 0 means the issuer's.
	DuplicateWindow time.Duration
	SLA             SLA
	Calendar        *Calendar // of the SLA, nil where none was agreed
	// StageBudgets are for how long an order may be in a status; one that is in it for
	// longer is late.
	StageBudgets map[Status]time.Duration
	// SilentAfter is how long nothing may be heard of an order before D1 is asked; 0
	// never asks.
	SilentAfter time.Duration
	// DispatchDelay is for how long orders that are not urgent are kept back, so that
	// they can be cancelled for certain.
	DispatchDelay time.Duration
	// MaxOrdersPerConsumerPerDay is how many orders of a consumer are sent in 24 hours
	// before further ones are held; 0 means any number.
	MaxOrdersPerConsumerPerDay int
}

// Limits are the times that the orders of the program are held to.
func (p *Program) Limits() *Limits {
	return &Limits{
		Calendar: p.Calendar, Budget: p.StageBudgets, SilentAfter: p.SilentAfter,
		DispatchDelay: p.DispatchDelay, MaxOrdersPerConsumerPerDay: p.MaxOrdersPerConsumerPerDay,
	}
}

// PaymentProfile is a personalization config with the key indexes that may go
// with it. A nil list restricts nothing.
type PaymentProfile struct {
	Config               string
	ODAKeyIndexes        []string
	DerivationKeyIndexes []string
	CVKeyIndexes         []string
	PVKeyIndexes         []string
}

// SLA is how long the bureau may take from receipt to shipping, in working days
// of the centre. Orders after the cut-off count for the next day.
type SLA struct {
	WorkingDays map[Issuance]int
	CutOff      string // HH:MM in TimeZone, "" when none was agreed
	TimeZone    string // IANA name
	// ReadyBy is the time of day, HH:MM, by which the last working day's cards are ready;
	// "" means the end of the day.
	ReadyBy  string
	Weekend  []time.Weekday // nil means Saturday and Sunday
	Holidays []string       // YYYY-MM-DD: days without work besides
	Urgent   Urgent
}

// WeekendDays are the days of the week without work.
func (s *SLA) WeekendDays() []time.Weekday {
	if s.Weekend == nil {
		return []time.Weekday{time.Saturday, time.Sunday}
	}
	return s.Weekend
}

// Urgent is how long the bureau may take for an urgent order that it has before the
// cut-off of a working day; a later one is as any other.
type Urgent struct {
	Within time.Duration // 0 when nothing was agreed
	CutOff string        // HH:MM, "" when none was agreed
}

// noChoice are D1's defaults of services that were left out.
const (
	noCarrier = "NO_CARRIER"
	noPack    = "NO_PACK"
)

func (d *document) outsideProgram(pointer, rule, format string, args ...any) {
	d.addFault(Fault{Pointer: pointer, Code: CodeOutsideProgram, Detail: fmt.Sprintf(format, args...), Rule: rule})
}

// within reports a value that is not among those that were agreed, unless it is wrong by
// itself already.
func (d *document) within(pointer, rule string, allowed []string, value string) {
	if allowed != nil && value != "" && !slices.Contains(allowed, value) && !d.faulty(pointer) {
		d.outsideProgram(pointer, rule, "is not a part of this card product's program")
	}
}

// checkProgram reports what D1 takes and the issuer's agreement with the bureau
// does not.
func (d *document) checkProgram(p *Production) {
	if d.program == nil {
		if d.rules.Programs != nil && p.CardProductID != "" {
			d.outsideProgram("/cardProductId", "cardProducts", "is not a card product of this issuer")
		}
		return
	}
	// A Thales centre does what D1 does by default, and others do what they are
	// told.
	byDefault := func(value, d1s string) string {
		if value == "" && p.Channel == ChannelThales {
			return d1s
		}
		return value
	}
	if allowed := d.program.DistributionChannels; allowed != nil && p.Channel != "" && !slices.Contains(allowed, p.Channel) {
		d.outsideProgram("/distributionChannel", "distributionChannels", "is not a part of this card product's program")
	}
	d.within("/services/delivery", "deliveryMethods", d.program.DeliveryMethods, byDefault(p.Services.Delivery, NoShipment))
	d.within("/services/cardCarrier", "cardCarriers", d.program.CardCarriers, byDefault(p.Services.CardCarrier, noCarrier))
	d.within("/services/packaging", "packagings", d.program.Packagings, byDefault(p.Services.Packaging, noPack))
	if p.Services.AlphaCard && !d.program.AlphaCard {
		d.outsideProgram("/services/alphaCard", "alphaCard", "no sample cards are made in this card product's program")
	}
	if c := p.PackagingConfig; c != nil {
		for i, insert := range c.Inserts {
			d.within("/packagingConfig/inserts/"+strconv.Itoa(i), "inserts", d.program.Inserts, insert)
		}
	}
	if s := p.Shipment; s != nil && s.DeliveryAddress != nil {
		d.within("/shipment/deliveryAddress/countryCode", "destinationCountries", d.program.DestinationCountries, s.DeliveryAddress.CountryCode)
	}
	if a := p.PaymentApplication; a != nil && a.Config != "" && d.program.PaymentApplications != nil {
		d.checkPayment(a)
	}
}

// checkPayment looks for a profile that allows a as a whole, since a config may
// come with several sets of keys. If there is none, the faults are those of the
// config's first profile.
func (d *document) checkPayment(a *PaymentApplication) {
	var first *PaymentProfile
	for i := range d.program.PaymentApplications {
		profile := &d.program.PaymentApplications[i]
		switch {
		case profile.Config != a.Config:
			continue
		case profile.allows(a):
			return
		case first == nil:
			first = profile
		}
	}
	if first == nil {
		d.outsideProgram("/paymentApplication/config", "paymentApplications", "is not a part of this card product's program")
		return
	}
	for _, key := range first.keys(a) {
		d.within("/paymentApplication/"+key.member, key.rule, key.allowed, key.value)
	}
}

type profileKey struct {
	member, rule string
	allowed      []string
	value        string
}

func (p *PaymentProfile) keys(a *PaymentApplication) [4]profileKey {
	return [...]profileKey{
		{"odaKeyIndex", "odaKeyIndexes", p.ODAKeyIndexes, a.ODAKeyIndex},
		{"derivationKeyIndex", "derivationKeyIndexes", p.DerivationKeyIndexes, a.DerivationKeyIndex},
		{"cvKeyIndex", "cvKeyIndexes", p.CVKeyIndexes, a.CVKeyIndex},
		{"pvKeyIndex", "pvKeyIndexes", p.PVKeyIndexes, a.PVKeyIndex},
	}
}

// allows tells whether all keys of a may go with p. Keys that D1 can do without
// may be left out.
func (p *PaymentProfile) allows(a *PaymentApplication) bool {
	for _, key := range p.keys(a) {
		if key.allowed != nil && key.value != "" && !slices.Contains(key.allowed, key.value) {
			return false
		}
	}
	return true
}
