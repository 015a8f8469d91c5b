package d1sim

import "time"

// The status of an operation (not of its card).
const (
	OperationPending    = "PENDING"
	OperationSuccessful = "SUCCESSFUL"
	OperationFailed     = "FAILED"
)

// The status of a card in production: details.status of a PRODUCE operation.
const (
	CardProdRequested = "CARD_PROD_REQUESTED"
	DataException     = "DATA_EXCEPTION"
	DataPrepared      = "DATA_PREPARED"
	CardProdReady     = "CARD_PROD_READY"
	CardProdOngoing   = "CARD_PROD_ONGOING"
	CardProdException = "CARD_PROD_EXCEPTION"
	CardProdDone      = "CARD_PROD_DONE"
	CardShipped       = "CARD_SHIPPED"
	CardProdCanceled  = "CARD_PROD_CANCELED"
	CardReturned      = "CARD_RETURNED"
)

// Operation is what notifications and productionStatus tell of one order, or of one change of an order, and notifications
// of anything else.
type Operation struct {
	OperationID     string     `json:"operationId"`
	Operation       string     `json:"operation"` // PRODUCE, UPDATE_ORDER or any other
	Status          string     `json:"status"`
	StartTime       time.Time  `json:"startTime"` // of the operation: the same in all its notifications
	EndTime         *time.Time `json:"endTime,omitempty"`
	CardID          string     `json:"cardId"`
	IssuerRequestID string     `json:"issuerRequestId,omitempty"`
	ErrorCode       string     `json:"errorCode,omitempty"`
	Error           string     `json:"error,omitempty"`
	Details         Details    `json:"details,omitzero"`
}

// Details is the part of an Operation that tells of the card.
type Details struct {
	Status          string    `json:"status,omitempty"` // none of an UPDATE_ORDER
	Reason          string    `json:"reason,omitempty"`
	DueDate         string    `json:"dueDate,omitempty"` // a date, YYYY-MM-DD
	ProductionSite  string    `json:"productionSite,omitempty"`
	IssuerRequestID string    `json:"issuerRequestId,omitempty"`
	TrackingType    string    `json:"trackingType,omitempty"` // of STANDALONE_TRACKING
	Shipment        *Shipment `json:"shipment,omitempty"`     // never changed once set: copies share it
}

// Shipment is what the carrier reports.
type Shipment struct {
	Carrier        string `json:"carrier,omitempty"`
	TrackingNumber string `json:"trackingNumber,omitempty"`
	Status         string `json:"status,omitempty"` // the carrier's code
	Message        string `json:"message,omitempty"`
	TrackingURL    string `json:"trackingUrl,omitempty"`
}

// operations is the envelope of notifications and of productionStatus.
type operations struct {
	Operations []Operation `json:"operations"`
}

// placed returns the operation with its issuerRequestId where it is to be shown, if at all.
func (o Operation) placed(set Settings, without bool) Operation {
	place := set.RequestIDPlace
	if without || set.ChangesWithoutRequestIDs && o.Operation == "UPDATE_ORDER" {
		place = ""
	}
	id := o.IssuerRequestID
	o.IssuerRequestID = ""
	if place == PlaceTop || place == PlaceBoth {
		o.IssuerRequestID = id
	}
	if place == PlaceDetails || place == PlaceBoth {
		o.Details.IssuerRequestID = id
	}
	return o
}
