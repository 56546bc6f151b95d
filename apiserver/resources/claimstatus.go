package resources

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

// allocatedDevice names a device, or a share of it, as messages show it.
type allocatedDevice struct{ Driver, Pool, Device, ShareID string }

func allocatedDevices(a *resourcev1.AllocationResult) check.Seen[allocatedDevice] {
	out := check.Seen[allocatedDevice]{}
	if a != nil {
		for _, r := range a.Devices.Results {
			out[allocatedDevice{r.Driver, r.Pool, r.Device, string(valueOr(r.ShareID, ""))}] = true
		}
	}
	return out
}

func reported(d *resourcev1.AllocatedDeviceStatus) allocatedDevice {
	return allocatedDevice{d.Driver, d.Pool, d.Device, valueOr(d.ShareID, "")}
}

// prepareDeviceClaimStatus drops what is reported of devices that have just been taken back.
func prepareDeviceClaimStatus(_ *Request, c, old *resourcev1.ResourceClaim) {
	c.Spec = old.Spec
	was, now := allocatedDevices(old.Status.Allocation), allocatedDevices(c.Status.Allocation)
	c.Status.Devices = slices.DeleteFunc(c.Status.Devices, func(d resourcev1.AllocatedDeviceStatus) bool {
		return was[reported(&d)] && !now[reported(&d)]
	})
}

// validateDeviceClaimStatus: an allocation is made once and can then only be taken back; what is reported of devices
// is about those that are allocated.
func validateDeviceClaimStatus(rq *Request, c, old *resourcev1.ResourceClaim) field.ErrorList {
	var f check.Faults
	s, p := &c.Status, field.NewPath("status")
	at := p.Child("reservedFor")
	if atMost(&f, at, len(s.ReservedFor), resourcev1.ResourceClaimReservedForMaxSize) {
		uids := check.Seen[string]{}
		for i, r := range s.ReservedFor {
			f.Need(at.Index(i).Child("resource"), r.Resource)
			f.Need(at.Index(i).Child("name"), r.Name)
			f.Need(at.Index(i).Child("uid"), string(r.UID))
			if uids.Again(string(r.UID)) {
				f.Duplicate(at.Index(i), r.UID)
			}
		}
	}
	allocated := allocatedDevices(s.Allocation)
	seen := check.Seen[allocatedDevice]{}
	for i := range s.Devices {
		d, at := &s.Devices[i], p.Child("devices").Index(i)
		id := reported(d)
		validateDeviceReport(&f, d, at)
		if !allocated[id] {
			f.Invalid(at, id, "must be an allocated device in the claim")
		}
		if seen.Again(id) {
			f.Duplicate(at, id)
		}
	}
	switch {
	case len(s.ReservedFor) == 0:
	case s.Allocation == nil:
		f.Forbidden(at, "may not be specified when `allocated` is not set")
	case c.DeletionTimestamp != nil:
		was := check.Seen[resourcev1.ResourceClaimConsumerReference]{}
		for _, r := range old.Status.ReservedFor {
			was[r] = true
		}
		for _, r := range s.ReservedFor {
			if !was[r] {
				f.Forbidden(at, "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set")
				break
			}
		}
	}
	switch {
	case s.Allocation == nil:
	case old.Status.Allocation != nil:
		f.Same(p.Child("allocation"), s.Allocation, old.Status.Allocation)
	default:
		validateAllocation(&f, s.Allocation, requestNames(&c.Spec), p.Child("allocation"))
	}
	if s.Allocation != nil && !equality.Semantic.DeepEqual(s.Allocation, old.Status.Allocation) {
		var asked []*field.Path
		for i, r := range s.Allocation.Devices.Results {
			if valueOr(r.AdminAccess, false) {
				asked = append(asked, p.Child("allocation", "devices", "results").Index(i).Child("adminAccess"))
			}
		}
		adminAccess(&f, rq, c.Namespace, asked)
	}
	return f.List()
}

func validateDeviceReport(f *check.Faults, d *resourcev1.AllocatedDeviceStatus, p *field.Path) {
	f.Add(podrules.ValidateCSIDriverName(d.Driver, p.Child("driver")))
	validatePoolName(f, d.Pool, p.Child("pool"))
	f.Label(p.Child("device"), d.Device)
	if d.ShareID != nil {
		validateShare(f, *d.ShareID, p.Child("shareID"))
	}
	if n := len(d.Conditions); n > deviceConditionsMax {
		f.TooMany(p.Child("conditions"), n, deviceConditionsMax)
	}
	f.Add(metavalidation.ValidateConditions(d.Conditions, p.Child("conditions")))
	if d.Data != nil && len(d.Data.Raw) > 0 {
		f.Object(p.Child("data"), d.Data.Raw, resourcev1.OpaqueParametersMaxLength)
	}
	n, p := d.NetworkData, p.Child("networkData")
	if n == nil {
		return
	}
	short := func(name, value string, max int) {
		if len(value) > max {
			f.TooLong(p.Child(name), "", max)
		}
	}
	short("interfaceName", n.InterfaceName, 256)
	short("hardwareAddress", n.HardwareAddress, 128)
	if at := p.Child("ips"); atMost(f, at, len(n.IPs), deviceAddressesMax) {
		seen := check.Seen[string]{}
		for i, ip := range n.IPs {
			f.Add(validation.IsValidInterfaceAddress(at.Index(i), ip))
			if seen.Again(ip) {
				f.Duplicate(at.Index(i), ip)
			}
		}
	}
}

// Source: resource.k8s.io/v1 API reference.
const deviceConditionsMax, deviceAddressesMax = 8, 16

func validateShare(f *check.Faults, id string, p *field.Path) {
	if err := uuid.Validate(id); err != nil {
		f.Invalid(p, id, fmt.Sprintf("error validating uid: %v", err))
	} else if len(id) != 36 || id != strings.ToLower(id) {
		f.Invalid(p, id, "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters")
	}
}

func validateAllocation(f *check.Faults, a *resourcev1.AllocationResult, names check.Seen[string], p *field.Path) {
	if at := p.Child("devices", "results"); atMost(f, at, len(a.Devices.Results), resourcev1.AllocationResultsMaxSize) {
		for i, r := range a.Devices.Results {
			at := at.Index(i)
			validateRequestRef(f, r.Request, names, at.Child("request"))
			f.Add(podrules.ValidateCSIDriverName(r.Driver, at.Child("driver")))
			validatePoolName(f, r.Pool, at.Child("pool"))
			f.Label(at.Child("device"), r.Device)
			bindingConditions(f, r.BindingConditions, r.BindingFailureConditions, at)
			if r.ShareID != nil {
				validateShare(f, string(*r.ShareID), at.Child("shareID"))
			}
		}
	}
	if at := p.Child("devices", "config"); atMost(f, at, len(a.Devices.Config), 2*resourcev1.DeviceConfigMaxSize) {
		for i, c := range a.Devices.Config {
			at := at.Index(i)
			check.OneOf(f, at.Child("source"), c.Source, resourcev1.AllocationConfigSourceClaim, resourcev1.AllocationConfigSourceClass)
			validateRequestRefs(f, c.Requests, names, at.Child("requests"))
			validateDeviceConfig(f, c.DeviceConfiguration, at, true)
		}
	}
	if a.NodeSelector != nil {
		f.Add(podrules.ValidateNodeSelector(a.NodeSelector, p.Child("nodeSelector")))
	}
}

func validatePoolName(f *check.Faults, name string, p *field.Path) {
	if !f.Need(p, name) {
		return
	}
	if len(name) > resourcev1.PoolNameMaxLength {
		f.TooLong(p, "", resourcev1.PoolNameMaxLength)
	}
	for part := range strings.SplitSeq(name, "/") {
		f.Subdomain(p, part)
	}
}
