package resources

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/resources/check"
)

type registeredService = apiregistrationv1.APIService

var apiServices = Resource[registeredService]{
	Group: apiregistrationv1.GroupName, Version: "v1", Kind: "APIService", Plural: "apiservices", WholeMeta: true, AnyFinalizer: true,
	Categories: []string{"api-extensions"}, Scope: Cluster, NeedsVersion: true, NoGeneration: true, Name: PathSegment,
	List: listOf[apiregistrationv1.APIServiceList],
	Default: func(s *registeredService) {
		if s.Spec.Service != nil {
			defPtr(&s.Spec.Service.Port, 443)
		}
	},
	Main: Part[registeredService]{
		Prepare: func(rq *Request, obj, old *registeredService) {
			if old != nil {
				obj.Status = *old.Status.DeepCopy()
				return
			}
			obj.Status = apiregistrationv1.APIServiceStatus{}
			if obj.Spec.Service == nil {
				SetAPIServiceCondition(&obj.Status, LocalAPIService(), rq.Now)
			}
		},
		Validate: withoutRequest(validateAPIService),
		Reset:    []string{"status"},
	},
	Status: &Part[registeredService]{
		Prepare: func(_ *Request, obj, old *registeredService) {
			obj.Spec = old.Spec
			obj.Labels, obj.Annotations = old.Labels, old.Annotations
			obj.Finalizers, obj.OwnerReferences = old.Finalizers, old.OwnerReferences
		},
		Validate: func(_ *Request, obj, _ *registeredService) field.ErrorList {
			var f check.Faults
			for i, c := range obj.Status.Conditions {
				check.Among(&f, field.NewPath("status", "conditions").Index(i).Child("status"), c.Status,
					apiregistrationv1.ConditionTrue, apiregistrationv1.ConditionFalse, apiregistrationv1.ConditionUnknown)
			}
			return f.List()
		},
		Reset: []string{"spec", "metadata"},
	},
	Columns: []Column[registeredService]{
		{
			Name: "Service", Type: "string", Description: "The reference to the service that hosts this API endpoint.",
			Cell: func(s *registeredService, _ time.Time) any {
				if s.Spec.Service == nil {
					return "Local"
				}
				return s.Spec.Service.Namespace + "/" + s.Spec.Service.Name
			},
		},
		{
			Name: "Available", Type: "string", Description: "Whether this service is available.",
			Cell: func(s *registeredService, _ time.Time) any {
				c := APIServiceCondition(&s.Status)
				switch {
				case c == nil:
					return string(apiregistrationv1.ConditionUnknown)
				case c.Status != apiregistrationv1.ConditionTrue && c.Reason != "":
					return fmt.Sprintf("%s (%s)", c.Status, c.Reason)
				}
				return string(c.Status)
			},
		},
		ageColumn[registeredService](),
	},
}

// LocalAPIService is the condition of what this server serves itself.
func LocalAPIService() apiregistrationv1.APIServiceCondition {
	return apiregistrationv1.APIServiceCondition{
		Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionTrue,
		Reason: "Local", Message: "Local APIServices are always available",
	}
}

// APIServiceCondition is the condition Available, or nil.
func APIServiceCondition(s *apiregistrationv1.APIServiceStatus) *apiregistrationv1.APIServiceCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == apiregistrationv1.Available {
			return &s.Conditions[i]
		}
	}
	return nil
}

// SetAPIServiceCondition sets the condition of c's type; its time moves when its status does.
func SetAPIServiceCondition(s *apiregistrationv1.APIServiceStatus, c apiregistrationv1.APIServiceCondition, now time.Time) {
	c.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
	for i := range s.Conditions {
		if have := &s.Conditions[i]; have.Type == c.Type {
			if have.Status == c.Status {
				c.LastTransitionTime = have.LastTransitionTime
			}
			*have = c
			return
		}
	}
	s.Conditions = append(s.Conditions, c)
}

func validateAPIService(s, _ *registeredService) field.ErrorList {
	var f check.Faults
	spec, p := &s.Spec, field.NewPath("spec")
	if want := spec.Version + "." + spec.Group; s.Name != "" && s.Name != want {
		f.Invalid(field.NewPath("metadata", "name"), s.Name, fmt.Sprintf("must be `spec.version+\".\"+spec.group`: %q", want))
	}
	if spec.Group == "" && spec.Version != "v1" {
		f.Required(p.Child("group"), "only v1 may have an empty group and it better be legacy kube")
	}
	if spec.Group != "" {
		f.Each(p.Child("group"), spec.Group, validation.IsDNS1123Subdomain(spec.Group))
	}
	f.Each(p.Child("version"), spec.Version, validation.IsDNS1035Label(spec.Version))
	if n := spec.GroupPriorityMinimum; n <= 0 || n > 20000 {
		f.Invalid(p.Child("groupPriorityMinimum"), n, "must be positive and less than 20000")
	}
	if n := spec.VersionPriority; n <= 0 || n > 1000 {
		f.Invalid(p.Child("versionPriority"), n, "must be positive and less than 1000")
	}
	if spec.Service == nil {
		if n := len(spec.CABundle); n > 0 {
			f.Invalid(p.Child("caBundle"), fmt.Sprintf("%d bytes", n), "local APIServices may not have a caBundle")
		}
		if spec.InsecureSkipTLSVerify {
			f.Invalid(p.Child("insecureSkipTLSVerify"), true, "local APIServices may not have insecureSkipTLSVerify")
		}
		return f.List()
	}
	at := p.Child("service")
	f.Need(at.Child("namespace"), spec.Service.Namespace)
	f.Need(at.Child("name"), spec.Service.Name)
	if n := spec.Service.Port; n != nil {
		for _, msg := range validation.IsValidPortNum(int(*n)) {
			f.Invalid(at.Child("port"), *n, "port is not valid: "+msg)
		}
	}
	if spec.InsecureSkipTLSVerify && len(spec.CABundle) > 0 {
		f.Invalid(p.Child("insecureSkipTLSVerify"), true, "may not be true if caBundle is present")
	}
	return f.List()
}
