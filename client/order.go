package client

import (
	"encoding/json"
	"time"
)

// Channel is where a card is made.
type Channel string

const (
	ChannelThales  Channel = "THALES"  // a Thales personalization centre
	ChannelInstant Channel = "INSTANT" // printed at once in a branch
	ChannelCentral Channel = "CENTRAL" // the issuer's or a partner's own centre
)

// Issuance is why a card is made.
type Issuance string

const (
	IssuanceCreation    Issuance = "CREATION"
	IssuanceRenewal     Issuance = "RENEWAL"
	IssuanceReplacement Issuance = "REPLACEMENT"
)

// Types of a Shipment.
const (
	ShipmentIndividual = "INDIVIDUAL"
	ShipmentBulk       = "BULK"
)

// Status is where an order stands. There may be newer ones than these.
type Status string

const (
	StatusAccepted       Status = "ACCEPTED"        // stored, waiting to be sent
	StatusHeld           Status = "HELD"            // kept back
	StatusOutcomeUnknown Status = "OUTCOME_UNKNOWN" // sent, no answer; D1 is being asked
	StatusRejected       Status = "REJECTED"        // D1 refused it
	StatusSubmitted      Status = "SUBMITTED"       // D1 took it
	StatusDataPrepared   Status = "DATA_PREPARED"
	StatusReady          Status = "READY"
	StatusOnHold         Status = "ON_HOLD" // D1 holds it
	StatusInProduction   Status = "IN_PRODUCTION"
	StatusException      Status = "EXCEPTION" // trouble at D1 that may pass
	StatusFailed         Status = "FAILED"
	StatusCancelled      Status = "CANCELLED"
	StatusProduced       Status = "PRODUCED"
	StatusShipped        Status = "SHIPPED"
	StatusDelivered      Status = "DELIVERED"
	StatusReturned       Status = "RETURNED"
)

// Warnings that an accepted order may carry. There may be newer ones.
const (
	WarningDeprecatedState         = "deprecated-member:state"
	WarningDeprecatedOldCardID     = "deprecated-member:oldCardId"
	WarningShipmentWithoutDelivery = "shipment-without-delivery"
	WarningCardNeverOrderedHere    = "card-never-ordered-here"
	WarningCardDataNotCompared     = "card-data-not-compared"
)

// NewOrder is an order as it is asked for: D1's members under D1's names, and
// the service's own. As JSON, with an IssuerRequestID and EncryptedData, it is a
// line of an NDJSON batch.
type NewOrder struct {
	CardID        string `json:"cardId"`
	ConsumerID    string `json:"consumerId,omitempty"`
	CardProductID string `json:"cardProductId,omitempty"`
	// IssuerRequestID is the caller's own stable id of this request. It makes the
	// order known to D1 too, and goes before any other key.
	IssuerRequestID     string              `json:"issuerRequestId,omitempty"`
	DistributionChannel Channel             `json:"distributionChannel"`
	Services            Services            `json:"services"`
	PaymentApplication  *PaymentApplication `json:"paymentApplication,omitempty"`
	CardDesign          *CardDesign         `json:"cardDesign,omitempty"`
	CardCarrierConfig   *CardCarrierConfig  `json:"cardCarrierConfig,omitempty"`
	PackagingConfig     *PackagingConfig    `json:"packagingConfig,omitempty"`
	Shipment            *Shipment           `json:"shipment,omitempty"`     // of THALES
	PersoStation        string              `json:"persoStation,omitempty"` // of INSTANT

	// Exactly one of the two. EncryptedData is a JWE that only D1 can open;
	// SensitiveData is taken only where the service is configured to.
	EncryptedData string         `json:"encryptedData,omitempty"`
	SensitiveData *SensitiveData `json:"sensitiveData,omitempty"`

	// Not for D1.
	Metadata          map[string]string  `json:"metadata,omitempty"` // rests in clear: no personal data
	Urgent            bool               `json:"urgent,omitempty"`
	DuplicateOverride *DuplicateOverride `json:"duplicateOverride,omitempty"`
	ReplacesOrderID   string             `json:"replacesOrderId,omitempty"`
	Hold              bool               `json:"hold,omitempty"`      // kept back until somebody releases it
	NotBefore         *time.Time         `json:"notBefore,omitempty"` // not to be sent earlier, at most 90 days ahead

	// Deprecated by D1, passed on with a warning.
	State     string `json:"state,omitempty"`
	OldCardID string `json:"oldCardId,omitempty"`
}

// Services is what the bureau is asked to do. An empty member is left to D1's
// default.
type Services struct {
	Issuance    Issuance `json:"issuance"`
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
	Type              string   `json:"type,omitempty"` // empty means ShipmentIndividual
	DeliveryAddress   *Address `json:"deliveryAddress,omitempty"`
	IndividualAddress *Address `json:"individualAddress,omitempty"`
	GroupID           string   `json:"groupId,omitempty"` // of ShipmentBulk
	OrderID           string   `json:"orderId,omitempty"` // of ShipmentBulk: D1's second-level container
}

// Address is a postal address.
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

// SensitiveData is card data in clear, on its way to a service that encrypts it
// for D1. It is written as JSON only into the body of a call.
type SensitiveData struct {
	PAN                     string     `json:"pan"`
	Exp                     string     `json:"exp"` // YYMM
	Name                    string     `json:"name,omitempty"`
	SecondName              string     `json:"secondName,omitempty"`
	EncodedName             string     `json:"encodedName,omitempty"`
	CVV1                    string     `json:"cvv1,omitempty"`
	CVV2                    string     `json:"cvv2,omitempty"`
	PVV                     string     `json:"pvv,omitempty"`
	PaymentAccountReference string     `json:"paymentAccountReference,omitempty"`
	EffectiveDate           string     `json:"effectiveDate,omitempty"`
	PANSequenceNumber       string     `json:"panSequenceNumber,omitempty"`
	TrackData               *TrackData `json:"trackData,omitempty"`
}

// TrackData is what is written to the stripe, as it is.
type TrackData struct {
	Track1 string `json:"track1,omitempty"`
	Track2 string `json:"track2,omitempty"`
	Track3 string `json:"track3,omitempty"`
}

// DuplicateOverride orders a card again although it has an order, and says why.
type DuplicateOverride struct {
	Reason string `json:"reason"`
}

// body is o as the service takes it: the one place where card data becomes JSON.
func (o *NewOrder) body() ([]byte, error) {
	type plain NewOrder
	if o.SensitiveData == nil {
		return json.Marshal((*plain)(o))
	}
	return json.Marshal(struct {
		*plain
		SensitiveData any `json:"sensitiveData"`
	}{(*plain)(o), o.SensitiveData.inClear()})
}

// inClear is card data as the service takes it; d itself prints as nothing, as JSON too.
func (d *SensitiveData) inClear() any {
	type sensitive SensitiveData
	type tracks TrackData
	return struct {
		*sensitive
		TrackData *tracks `json:"trackData,omitempty"`
	}{(*sensitive)(d), (*tracks)(d.TrackData)}
}

// Order is an order as the service shows it: without personal data.
type Order struct {
	ID              string      `json:"id"`
	IssuerID        string      `json:"issuerId"`
	IssuerRequestID string      `json:"issuerRequestId"`
	Status          Status      `json:"status"`
	EndsAt          Status      `json:"endsAt"` // the status at which it has arrived
	Version         int         `json:"version"`
	Attention       []Attention `json:"attention"` // what needs a human

	CardID              string              `json:"cardId"`
	ConsumerID          string              `json:"consumerId"`
	CardProductID       string              `json:"cardProductId"`
	DistributionChannel Channel             `json:"distributionChannel"`
	Services            Services            `json:"services"`
	PaymentApplication  *PaymentApplication `json:"paymentApplication"`
	PackagingConfig     *PackagingConfig    `json:"packagingConfig"`
	Shipment            *ShipmentTerms      `json:"shipment"`
	PersoStation        string              `json:"persoStation"`
	State               string              `json:"state"`
	OldCardID           string              `json:"oldCardId"`

	Metadata           map[string]string  `json:"metadata"`
	Urgent             bool               `json:"urgent"`
	DuplicateOverride  *DuplicateOverride `json:"duplicateOverride"`
	ReplacesOrderID    string             `json:"replacesOrderId"`
	ReplacedByOrderIDs []string           `json:"replacedByOrderIds"`
	BatchID            string             `json:"batchId"`
	Imported           bool               `json:"imported"` // an older system placed it at D1

	OperationID string `json:"operationId"` // D1's
	Asking      bool   `json:"asking"`      // D1 is being asked about it; not told in lists
	HoldPending bool   `json:"holdPending"` // it is held if D1 turns out not to have it; not told in lists
	Times
	DueDate        string   `json:"dueDate"` // as D1 says it
	ProductionSite string   `json:"productionSite"`
	Shipments      []Parcel `json:"shipments"`
	Warnings       []string `json:"warnings"` // constants above, or newer ones

	CreatedAt time.Time  `json:"createdAt"`
	CreatedBy string     `json:"createdBy"`
	UpdatedAt time.Time  `json:"updatedAt"`
	EndedAt   *time.Time `json:"endedAt"`
}

// Times is what time does to an order.
type Times struct {
	Hold             *Hold      `json:"hold"`             // why it is held, while it is
	NotBefore        *time.Time `json:"notBefore"`        // when it may be sent, where that was not at once
	CancellableUntil *time.Time `json:"cancellableUntil"` // until then a cancel is certain to come in time
	DueAt            *time.Time `json:"dueAt"`            // by when it should have arrived, as far as that is known
	Late             bool       `json:"late"`             // it should have arrived, or left its status, by now
}

// Hold is why an order is held. There may be newer reasons than request, person, rule and
// schedule.
type Hold struct {
	Reason string     `json:"reason"`
	Until  *time.Time `json:"until"` // of a schedule: its end
}

// ShipmentTerms is a Shipment without its addresses.
type ShipmentTerms struct {
	Type    string `json:"type"`
	GroupID string `json:"groupId"`
	OrderID string `json:"orderId"`
}

// Parcel is what a carrier has been given.
type Parcel struct {
	TrackingNumber string    `json:"trackingNumber"`
	Carrier        string    `json:"carrier"`
	Status         string    `json:"status"`      // the carrier's code
	OrderStatus    Status    `json:"orderStatus"` // what it means for the order, empty while nobody has the parcel
	TrackingURL    string    `json:"trackingUrl"`
	UpdatedAt      time.Time `json:"updatedAt"`
}

// Attention is something about an order that needs a human.
type Attention struct {
	Code   string `json:"code"`
	Detail string `json:"detail"`
	Actor  string `json:"actor"` // who should act
	Next   string `json:"next"`  // what they should do
}

// TimelineEntry is one thing that happened to an order: one of the members is set,
// or none where Kind is newer than this client.
type TimelineEntry struct {
	At           time.Time     `json:"at"`
	Kind         string        `json:"kind"`
	Event        *Event        `json:"event"`
	Attempt      *Attempt      `json:"attempt"`
	Notification *Notification `json:"notification"`
	Note         *Note         `json:"note"`
	Change       *Change       `json:"change"` // as it is now; what became of it when, events tell
}

// Event is a change of an order; Seq is the version that it made.
type Event struct {
	Seq            int             `json:"seq"`
	Type           string          `json:"type"`
	Status         Status          `json:"status"`
	PreviousStatus Status          `json:"previousStatus"`
	Attention      []string        `json:"attention"` // codes
	Warnings       []string        `json:"warnings"`  // of the order, with its first event
	Late           bool            `json:"late"`      // whether it was, then
	Cause          string          `json:"cause"`
	CauseID        string          `json:"causeId"`
	Actor          string          `json:"actor"`
	Detail         json.RawMessage `json:"detail"`
}

// Attempt is a call to D1 and what came of it.
type Attempt struct {
	ID            string    `json:"id"`
	Kind          string    `json:"kind"`
	Outcome       string    `json:"outcome"`
	Reason        string    `json:"reason"`
	HTTPStatus    int       `json:"httpStatus"` // 0 without an answer
	ErrorCode     string    `json:"errorCode"`
	ErrorText     string    `json:"errorText"`
	OperationID   string    `json:"operationId"`
	CorrelationID string    `json:"correlationId"`
	StartedAt     time.Time `json:"startedAt"`
	DurationMS    int64     `json:"durationMs"`
	ClaimLost     bool      `json:"claimLost"`
}

// Notification is what D1 told about an order.
type Notification struct {
	ID            int64                `json:"id"`
	OperationID   string               `json:"operationId"`
	Outcome       string               `json:"outcome"`
	CorrelationID string               `json:"correlationId"`
	TimesSeen     int                  `json:"timesSeen"`
	LastSeenAt    time.Time            `json:"lastSeenAt"`
	Content       *NotificationContent `json:"content"` // nil where it cannot be read
}

// NotificationContent is what of a notification may be shown, in D1's words; its free
// texts have a bullet for every digit.
type NotificationContent struct {
	Operation       string                `json:"operation"`
	OperationStatus string                `json:"operationStatus"` // not the card's
	Status          string                `json:"status"`          // the card's
	TrackingType    string                `json:"trackingType"`
	ErrorCode       string                `json:"errorCode"`
	Reason          string                `json:"reason"`
	DueDate         string                `json:"dueDate"`
	ProductionSite  string                `json:"productionSite"`
	Shipment        *NotificationShipment `json:"shipment"`
}

// NotificationShipment is what a notification says of a parcel.
type NotificationShipment struct {
	Carrier        string `json:"carrier"`
	TrackingNumber string `json:"trackingNumber"`
	Status         string `json:"status"`
	TrackingURL    string `json:"trackingUrl"`
}
