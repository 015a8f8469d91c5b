package d1client

import (
	"slices"
	"time"

	"cardorder/internal/order"
)

// Report is what a PRODUCE operation says about its order.
func (o Operation) Report(v order.Vocabulary) order.Report {
	r := order.Report{
		OperationID: o.OperationID,
		Operation:   order.OperationStatus(o.Status),
		Status:      o.Details.Status,
		OnHold:      slices.Contains(v.OnHold, o.Details.Status),
		Parcel:      o.parcel(v),
		Site:        o.Details.ProductionSite,
	}
	switch due := o.Details.DueDate; {
	case due.IsZero():
	case o.Details.DueDateOnly:
		r.DueDate = due.Format(time.DateOnly)
	case o.Details.DueDateZoneless: // the order's calendar knows that of the centre
		r.DueDate = due.Format("2006-01-02T15:04:05")
	default:
		r.DueDate = due.Format(time.RFC3339) // in the zone of the centre: its day is what counts
	}
	return r
}

// Tracking is what a STANDALONE_TRACKING operation says about its card.
func (o Operation) Tracking(v order.Vocabulary) order.Tracking {
	return order.Tracking{
		Operation: order.OperationStatus(o.Status), Type: o.Details.TrackingType, Status: o.Details.Status, Parcel: o.parcel(v),
	}
}

func (o Operation) parcel(v order.Vocabulary) order.Parcel {
	p := order.Parcel{TrackingNumber: o.Details.Shipment.TrackingNumber}
	switch code := o.Details.Shipment.Status; {
	case code == "":
	case slices.Contains(v.Returned, code):
		p.Status = order.Returned
	case slices.Contains(v.Delivered, code):
		p.Status = order.Delivered
	}
	return p
}
