// Package order is the heart of cardorder: what an order for a physical card
// is, which rules it has to meet, and how its life advances. It is pure: it
// does no I/O and imports nothing else of this module.
package order

import (
	"encoding/json"
	"fmt"
	"time"
)

// Channel is where a card is made (D1: distributionChannel).
type Channel string

const (
	ChannelThales  Channel = "THALES"  // a Thales personalization centre
	ChannelInstant Channel = "INSTANT" // printed at once in a branch
	ChannelCentral Channel = "CENTRAL" // the issuer's or a partner's own centre
)

// Channels lists them all.
var Channels = []Channel{ChannelThales, ChannelInstant, ChannelCentral}

// Issuance is why a card is made (D1: services.issuance).
type Issuance string

const (
	IssuanceCreation    Issuance = "CREATION"
	IssuanceRenewal     Issuance = "RENEWAL"
	IssuanceReplacement Issuance = "REPLACEMENT"
)

// Shipment types (D1: shipment.type).
const (
	ShipmentIndividual = "INDIVIDUAL"
	ShipmentBulk       = "BULK"
)

// NoShipment is D1's delivery method for a card that is not sent anywhere.
const NoShipment = "NO_SHIPMENT"

// Request is an order as core banking asks for it, after all rules were met.
type Request struct {
	CardID     string
	Production Production

	// Ours, never sent to D1.
	Metadata          map[string]string
	Urgent            bool
	DuplicateOverride string    // the reason given, empty when there is none
	ReplacesOrderID   string    // a UUID: the order of this service that this one stands in for
	Hold              bool      // to be kept back until somebody releases it
	NotBefore         time.Time // not to be sent earlier; zero: at once

	// EndsAt is the status at which the order has arrived.
	EndsAt Status

	// Warnings are codes of things worth telling the caller that stop nothing.
	Warnings []string

	// SensitiveData is the clear card data of the request, if it came in clear:
	// a part of the very buffer that was decoded, so that clearing that buffer
	// clears it. Never stored, logged or compared.
	SensitiveData []byte

	// Canonical is what idempotency compares: the request as RFC 8785 JSON,
	// before defaults, without card data and duplicateOverride. It is there with
	// faults too that an order may have been taken with: rules change. Else it is
	// nil.
	Canonical []byte
}

// Production is the body of D1's production call, in D1's own words.
// EncryptedData is a JWE that only D1 can open.
type Production struct {
	ConsumerID         string              `json:"consumerId"`
	CardProductID      string              `json:"cardProductId"`
	IssuerRequestID    string              `json:"issuerRequestId"`
	Channel            Channel             `json:"distributionChannel"`
	Services           Services            `json:"services"`
	PaymentApplication *PaymentApplication `json:"paymentApplication,omitempty"`
	EncryptedData      string              `json:"encryptedData,omitempty"`
	CardDesign         *CardDesign         `json:"cardDesign,omitempty"`
	CardCarrierConfig  *CardCarrierConfig  `json:"cardCarrierConfig,omitempty"`
	PackagingConfig    *PackagingConfig    `json:"packagingConfig,omitempty"`
	Shipment           *Shipment           `json:"shipment,omitempty"`
	PersoStation       string              `json:"persoStation,omitempty"`
	State              string              `json:"state,omitempty"`
	OldCardID          string              `json:"oldCardId,omitempty"`
}

// Services is what D1 is asked to do. An empty member is left to D1's default.
type Services struct {
	Issuance    Issuance `json:"issuance,omitempty"` // always there, but of imported orders
	Priority    string   `json:"priority,omitempty"`
	Delivery    string   `json:"delivery,omitempty"`
	CardCarrier string   `json:"cardCarrier,omitempty"`
	Packaging   string   `json:"packaging,omitempty"`
	PinMailer   bool     `json:"pinMailer,omitempty"`
	AlphaCard   bool     `json:"alphaCard,omitempty"`
}

// PaymentApplication names the EMV profile and the keys that D1 uses.
type PaymentApplication struct {
	Config             string `json:"config"`
	ODAKeyIndex        string `json:"odaKeyIndex"`
	DerivationKeyIndex string `json:"derivationKeyIndex"`
	CVKeyIndex         string `json:"cvKeyIndex,omitempty"`
	PVKeyIndex         string `json:"pvKeyIndex,omitempty"`
}

// CardDesign is what is printed on the card.
type CardDesign struct {
	CardImage   string   `json:"cardImage,omitempty"`
	Images      []string `json:"images,omitempty"`
	CustomLines []string `json:"customLines,omitempty"`
	MemberID    string   `json:"memberId,omitempty"`
}

// CardCarrierConfig is what is printed on the letter that carries the card.
type CardCarrierConfig struct {
	Language    string   `json:"language,omitempty"`
	Images      []string `json:"images,omitempty"`
	CustomLines []string `json:"customLines,omitempty"`
}

// PackagingConfig lists what is put into the envelope.
type PackagingConfig struct {
	Inserts []string `json:"inserts,omitempty"`
}

// Shipment is where the card goes, alone or in a box with others.
type Shipment struct {
	Type              string   `json:"type"`
	DeliveryAddress   *Address `json:"deliveryAddress,omitempty"`
	IndividualAddress *Address `json:"individualAddress,omitempty"`
	GroupID           string   `json:"groupId,omitempty"`
	OrderID           string   `json:"orderId,omitempty"`
}

// Address is a postal address as D1 takes it.
type Address struct {
	Title             string `json:"title,omitempty"`
	FirstName         string `json:"firstName,omitempty"`
	LastName          string `json:"lastName,omitempty"`
	CompanyName       string `json:"companyName,omitempty"`
	Line1             string `json:"line1"`
	Line2             string `json:"line2,omitempty"`
	Line3             string `json:"line3,omitempty"`
	ZipCode           string `json:"zipCode"`
	City              string `json:"city"`
	State             string `json:"state,omitempty"`
	CountryCode       string `json:"countryCode"`
	MobilePhoneNumber string `json:"mobilePhoneNumber,omitempty"`
}

// Body is the body of D1's production call: p as JSON.
func (p *Production) Body() ([]byte, error) {
	body, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("writing a production request: %w", err)
	}
	return body, nil
}

// Terms is the part of a production request that identifies nobody and so may
// rest in clear and be shown to every reader of the order.
type Terms struct {
	Services           Services            `json:"services"`
	PaymentApplication *PaymentApplication `json:"paymentApplication,omitempty"`
	PackagingConfig    *PackagingConfig    `json:"packagingConfig,omitempty"`
	Shipment           *ShipmentTerms      `json:"shipment,omitempty"`
	PersoStation       string              `json:"persoStation,omitempty"`
	State              string              `json:"state,omitempty"`
	OldCardID          string              `json:"oldCardId,omitempty"`
}

// ShipmentTerms is a shipment without its addresses.
type ShipmentTerms struct {
	Type    string `json:"type"`
	GroupID string `json:"groupId,omitempty"`
	OrderID string `json:"orderId,omitempty"`
}

// Terms returns what of p may be shown.
func (p *Production) Terms() Terms {
	t := Terms{
		Services:           p.Services,
		PaymentApplication: p.PaymentApplication,
		PackagingConfig:    p.PackagingConfig,
		PersoStation:       p.PersoStation,
		State:              p.State,
		OldCardID:          p.OldCardID,
	}
	if s := p.Shipment; s != nil {
		t.Shipment = &ShipmentTerms{Type: s.Type, GroupID: s.GroupID, OrderID: s.OrderID}
	}
	return t
}

// EndsAt is the status at which an order of this production request has
// arrived: D1 follows a card to the carrier only if it ships it itself.
func (p *Production) EndsAt() Status {
	delivery := p.Services.Delivery
	if p.Channel == ChannelThales && delivery != "" && delivery != NoShipment {
		return Shipped
	}
	return Produced
}
