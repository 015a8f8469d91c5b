package api

import (
	"time"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// orderView is an order as JSON: what identifies a person is not in it.
type orderView struct {
	ID                  string             `json:"id"`
	IssuerID            string             `json:"issuerId"`
	IssuerRequestID     string             `json:"issuerRequestId"`
	Status              order.Status       `json:"status"`
	Version             int                `json:"version"`
	Attention           []attentionView    `json:"attention"`
	CardID              string             `json:"cardId"`
	ConsumerID          string             `json:"consumerId"`
	CardProductID       string             `json:"cardProductId"`
	DistributionChannel order.Channel      `json:"distributionChannel"`
	order.Terms                            // D1's members that may be shown
	Urgent              bool               `json:"urgent"`
	Metadata            map[string]string  `json:"metadata,omitempty"`
	DuplicateOverride   *duplicateOverride `json:"duplicateOverride,omitempty"`
	ReplacesOrderID     string             `json:"replacesOrderId,omitempty"`
	ReplacedByOrderIDs  []string           `json:"replacedByOrderIds,omitempty"`
	BatchID             string             `json:"batchId,omitempty"`
	Imported            bool               `json:"imported,omitempty"`
	EndsAt              order.Status       `json:"endsAt"`
	OperationID         string             `json:"operationId,omitempty"`
	Asking              bool               `json:"asking,omitempty"`
	HoldPending         bool               `json:"holdPending,omitempty"`
	timesView
	DueDate        string         `json:"dueDate,omitempty"`
	ProductionSite string         `json:"productionSite,omitempty"`
	Shipments      []shipmentView `json:"shipments"`
	Warnings       []string       `json:"warnings"`
	CreatedAt      time.Time      `json:"createdAt"`
	CreatedBy      string         `json:"createdBy"`
	UpdatedAt      time.Time      `json:"updatedAt"`
	EndedAt        *time.Time     `json:"endedAt,omitempty"`
}

// timesView is what time does to an order.
type timesView struct {
	Hold             *holdView  `json:"hold,omitempty"`
	NotBefore        *time.Time `json:"notBefore,omitempty"`
	CancellableUntil *time.Time `json:"cancellableUntil,omitempty"`
	DueAt            *time.Time `json:"dueAt,omitempty"`
	Late             bool       `json:"late"`
}

type holdView struct {
	Reason order.HoldReason `json:"reason"`
	Until  *time.Time       `json:"until,omitempty"`
}

// viewTimes shows a schedule as long as there is one: what is held for another reason
// waits for a person, however long that takes.
func viewTimes(o *store.Order) timesView {
	v := timesView{NotBefore: o.NotBefore, Late: o.State.Late}
	if !o.State.DueAt.IsZero() {
		due := o.State.DueAt.UTC()
		v.DueAt = &due
	}
	if o.State.Status != order.Held {
		return v
	}
	v.Hold = &holdView{Reason: o.State.Hold}
	if o.State.Hold == order.HeldBySchedule {
		v.Hold.Until = o.NotBefore
	}
	if o.State.Hold == order.HeldBySchedule || o.NotBefore != nil && o.NotBefore.After(time.Now()) {
		v.CancellableUntil = o.NotBefore
	}
	return v
}

// dryRunView is what would become of an order.
type dryRunView struct {
	DryRun  bool             `json:"dryRun"`
	Outcome store.RowOutcome `json:"outcome"`
	Order   string           `json:"order,omitempty"` // the id of the one that it repeats
	Status  order.Status     `json:"status"`
	EndsAt  order.Status     `json:"endsAt"`
	timesView
	Program     string   `json:"program,omitempty"`
	PrintedName string   `json:"printedName,omitempty"` // where the name is known
	Warnings    []string `json:"warnings"`
}

type duplicateOverride struct {
	Reason string `json:"reason"`
}

type attentionView struct {
	Code   order.Attention `json:"code"`
	Detail string          `json:"detail"`
	Actor  string          `json:"actor"`
	Next   string          `json:"next"`
}

type shipmentView struct {
	TrackingNumber string       `json:"trackingNumber,omitempty"`
	Carrier        string       `json:"carrier,omitempty"`
	Status         string       `json:"status,omitempty"`
	OrderStatus    order.Status `json:"orderStatus,omitempty"`
	TrackingURL    string       `json:"trackingUrl,omitempty"`
	UpdatedAt      time.Time    `json:"updatedAt"`
}

func viewOrder(o *store.Order) orderView {
	v := orderView{
		ID: o.ID.String(), IssuerID: o.IssuerID, IssuerRequestID: o.IssuerRequestID,
		Status: o.State.Status, Version: o.State.Version, Attention: viewAttention(o.State.Attention),
		CardID: o.CardID, ConsumerID: o.ConsumerID, CardProductID: o.CardProductID, DistributionChannel: o.Channel,
		Terms: o.Terms, Urgent: o.Urgent, Metadata: o.Metadata,
		OperationID: o.State.OperationID, DueDate: o.State.DueDate.Value, ProductionSite: o.State.ProductionSite.Value,
		Shipments: []shipmentView{}, Warnings: append([]string{}, o.Warnings...),
		CreatedAt: o.CreatedAt, CreatedBy: o.CreatedBy, UpdatedAt: o.UpdatedAt, EndedAt: o.EndedAt,
	}
	v.EndsAt, v.Asking, v.HoldPending = o.State.EndsAt, o.Asking, o.HoldPending
	v.Imported, v.timesView = o.Imported, viewTimes(o)
	if o.ReplacesOrderID != nil {
		v.ReplacesOrderID = o.ReplacesOrderID.String()
	}
	for _, id := range o.ReplacedBy {
		v.ReplacedByOrderIDs = append(v.ReplacedByOrderIDs, id.String())
	}
	if o.BatchID != nil {
		v.BatchID = o.BatchID.String()
	}
	if o.DuplicateOverride != "" {
		v.DuplicateOverride = &duplicateOverride{o.DuplicateOverride}
	}
	for _, s := range o.Shipments {
		v.Shipments = append(v.Shipments, shipmentView{
			TrackingNumber: s.TrackingNumber, Carrier: s.Carrier, Status: s.Status, OrderStatus: o.State.Parcel(s.TrackingNumber),
			TrackingURL: s.TrackingURL, UpdatedAt: s.UpdatedAt,
		})
	}
	return v
}

func viewAttention(list []order.Attention) []attentionView {
	views := make([]attentionView, len(list))
	for i, a := range list {
		advice := a.Advice()
		views[i] = attentionView{a, advice.Detail, advice.Actor, advice.Next}
	}
	return views
}
