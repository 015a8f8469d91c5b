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
}

// Programs returns what may be ordered.
func (c *Client) Programs(ctx context.Context) (*Programs, error) {
	return get[Programs](ctx, c, &request{doing: "reading the programs", method: http.MethodGet, path: "/programs"})
}
