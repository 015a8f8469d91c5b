package order

import "time"

//go:generate go test -run TestDrawing . -update

// ClockSkew is by how much D1's clock may be behind the database's when the start
// of an operation is compared with our first send.
const ClockSkew = 2 * time.Minute

// Status is where an order stands.
type Status string

const (
	Accepted       Status = "ACCEPTED"        // stored, waiting to be sent
	Held           Status = "HELD"            // kept back
	OutcomeUnknown Status = "OUTCOME_UNKNOWN" // sent, no answer; D1 is asked before anything is sent again
	Rejected       Status = "REJECTED"        // D1 refused it
	Submitted      Status = "SUBMITTED"       // D1 took it
	DataPrepared   Status = "DATA_PREPARED"
	Ready          Status = "READY"
	OnHold         Status = "ON_HOLD" // D1 holds it
	InProduction   Status = "IN_PRODUCTION"
	Exception      Status = "EXCEPTION" // trouble at D1 that may pass
	Failed         Status = "FAILED"
	Cancelled      Status = "CANCELLED"
	Produced       Status = "PRODUCED"
	Shipped        Status = "SHIPPED"
	Delivered      Status = "DELIVERED"
	Returned       Status = "RETURNED"
)

// Statuses lists every status, in the order in which orders usually pass them.
var Statuses = []Status{
	Accepted, Held, OutcomeUnknown, Rejected, Submitted, DataPrepared, Ready, OnHold, InProduction,
	Exception, Failed, Cancelled, Produced, Shipped, Delivered, Returned,
}

// KnownStatus tells whether s is one of Statuses.
func KnownStatus(s Status) bool {
	for _, known := range Statuses {
		if s == known {
			return true
		}
	}
	return false
}

// kind tells how a status takes part in the race of ranks.
type kind int

const (
	step kind = iota // a step of production: only ever forward
	side             // a state beside the steps that D1's word of now may lift
	dead             // the end of an order without its card
	away             // where a parcel is: the parcels together decide
)

// place is a status with its rank. D1 sends no time and no sequence number, so
// the order of arrival proves nothing: the highest rank ever heard of wins.
type place struct {
	status Status
	rank   int
	kind   kind
}

// The places of an order at D1 and beyond, lowest first. Where an exception is, its row
// in places tells.
var (
	submitted    = place{Submitted, 10, step}
	dataPrepared = place{DataPrepared, 20, step}
	ready        = place{Ready, 30, step}
	onHold       = place{OnHold, 35, side} // D1 does not name such states: a setting does
	inProduction = place{InProduction, 40, step}
	failed       = place{Failed, 45, dead} // an operation that failed without saying where
	cancelled    = place{Cancelled, 49, dead}
	produced     = place{Produced, 50, step}
	shipped      = place{Shipped, 60, step}
	delivered    = place{Delivered, 70, away}
	returned     = place{Returned, 80, away}
)

// places is what D1's details.status of a PRODUCE operation means. With a FAILED
// operation an exception is a failure (Report.end). The drawing in
// docs/architecture.md is made from it.
var places = map[string]place{
	"CARD_PROD_REQUESTED": submitted,
	"DATA_PREPARED":       dataPrepared,
	"DATA_EXCEPTION":      {Exception, 25, side},
	"CARD_PROD_READY":     ready,
	"CARD_PROD_ONGOING":   inProduction,
	"CARD_PROD_EXCEPTION": {Exception, 45, side},
	"CARD_PROD_CANCELED":  cancelled,
	"CARD_PROD_DONE":      produced,
	"CARD_SHIPPED":        shipped,
	"CARD_RETURNED":       returned,
}

// BuiltIn tells whether a details.status of D1 has its meaning here without a setting.
func BuiltIn(detailsStatus string) bool {
	_, known := places[detailsStatus]
	return known
}

// stepAt returns the step of production with the given rank.
func stepAt(rank int) Status {
	for _, p := range places {
		if p.rank == rank && p.kind == step {
			return p.status
		}
	}
	return Accepted
}
