package client

import (
	"context"
	"net/http"
)

// Programs is what the issuer may order. Without Configured, that is all that D1
// takes.
type Programs struct {
	Configured bool      `json:"configured"`
	Digest     string    `json:"digest"` // SHA-256 of the programs file
	Data       []Program `json:"data"`
}

// Program is what was agreed for one card product. A nil list restricts nothing;
// an empty one allows nothing.
type Program struct {
	CardProductID          string           `json:"cardProductId"`
	DistributionChannels   []Channel        `json:"distributionChannels"`
	DestinationCountries   []string         `json:"destinationCountries"`
	DeliveryMethods        []string         `json:"deliveryMethods"`
	CardCarriers           []string         `json:"cardCarriers"`
	Packagings             []string         `json:"packagings"`
	Inserts                []string         `json:"inserts"`
	PaymentApplications    []PaymentProfile `json:"paymentApplications"`
	AlphaCard              bool             `json:"alphaCard"`
	NameCharacters         string           `json:"nameCharacters"`
	NameLength             int              `json:"nameLength"`
	EndsAt                 Status           `json:"endsAt"`
	DuplicateWindowSeconds int64            `json:"duplicateWindowSeconds"`
	SLA                    *SLA             `json:"sla"`
	// StageBudgetSeconds are for how long an order may have a status before it is late.
	StageBudgetSeconds map[Status]int64 `json:"stageBudgetSeconds"`
	// SilentAfterSeconds is after how long without news of an order D1 is asked; 0 never.
	SilentAfterSeconds int64 `json:"silentAfterSeconds"`
	// DispatchDelaySeconds is for how long orders that are not urgent are kept back.
	DispatchDelaySeconds int64 `json:"dispatchDelaySeconds"`
	// MaxOrdersPerConsumerPerDay is how many orders of a consumer are sent in 24 hours; 0
	// means any number.
	MaxOrdersPerConsumerPerDay int `json:"maxOrdersPerConsumerPerDay"`
}

// PaymentProfile is a personalization config with the key indexes that may go
// with it. A nil list restricts nothing.
type PaymentProfile struct {
	Config               string   `json:"config"`
	ODAKeyIndexes        []string `json:"odaKeyIndexes"`
	DerivationKeyIndexes []string `json:"derivationKeyIndexes"`
	CVKeyIndexes         []string `json:"cvKeyIndexes"`
	PVKeyIndexes         []string `json:"pvKeyIndexes"`
}

// SLA is how long the bureau may take, in working days of its centre. What comes
// after CutOff counts for the next day.
type SLA struct {
	WorkingDays map[Issuance]int `json:"workingDays"`
	CutOff      string           `json:"cutOff"` // HH:MM in TimeZone
	TimeZone    string           `json:"timeZone"`
	ReadyBy     string           `json:"readyBy"`  // HH:MM, when the last day's cards are ready; "" means the end of the day
	Weekend     []string         `json:"weekend"`  // days of the week without work
	Holidays    []string         `json:"holidays"` // YYYY-MM-DD
	Urgent      *Urgent          `json:"urgent"`
}

// Urgent is how long the bureau may take for an urgent order that it has before CutOff.
type Urgent struct {
	WithinSeconds int64  `json:"withinSeconds"`
	CutOff        string `json:"cutOff"` // HH:MM in the centre's time zone; "" means the end of the day
}

// Programs returns what may be ordered.
func (c *Client) Programs(ctx context.Context) (*Programs, error) {
	return get[Programs](ctx, c, &request{doing: "reading the programs", method: http.MethodGet, path: "/programs"})
}
