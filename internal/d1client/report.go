package d1client

import (
	"slices"
	"time"

	"cardorder/internal/order"
)

// Report is what the operation says about its order. onHold lists the values of
// details.status that mean "on hold": D1's documentation does not name them.
func (o Operation) Report(onHold []string) order.Report {
	r := order.Report{
		OperationID: o.OperationID,
		Operation:   order.OperationStatus(o.Status),
		Status:      o.Details.Status,
		OnHold:      slices.Contains(onHold, o.Details.Status),
		Site:        o.Details.ProductionSite,
	}
	switch due := o.Details.DueDate; {
	case due.IsZero():
	case o.Details.DueDateOnly:
		r.DueDate = due.Format(time.DateOnly)
	default:
		r.DueDate = due.Format(time.RFC3339) // in the zone of the centre: its day is what counts
	}
	return r
}
