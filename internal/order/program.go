package order

import "time"

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
}
