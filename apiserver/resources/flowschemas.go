package resources

import (
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var flowSchemas = Resource[flowcontrolv1.FlowSchema]{
	Group: "flowcontrol.apiserver.k8s.io", Version: "v1", Kind: "FlowSchema", Plural: "flowschemas",
	Scope:  Cluster,
	Prefix: "flowschemas",
	List:   func() runtime.Object { return &flowcontrolv1.FlowSchemaList{} },
	Status: &Part[flowcontrolv1.FlowSchema]{},
}
